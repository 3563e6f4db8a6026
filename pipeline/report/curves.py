"""How training went: what the logs hold against the optimizer step."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from pipeline.report.drawing import PLAIN, THOUGHT, Plot, plot
from pipeline.report.figures import legend_above
from pipeline.report.method import Method
from pipeline.report.reading import read_csv
from pipeline.training.warnings import WATCHED, warnings

FEW_POINTS = 25  # up to here each point is marked; above, the line is smoothed over this part of the points
HEIGHT = 2.3  # inches


@dataclass(frozen=True)
class Line:
    column: str
    label: str
    colour: str = THOUGHT


@dataclass(frozen=True)
class Curve:
    name: str
    title: str
    unit: str
    lines: tuple[Line, ...]


def heldout_curves(path: Path, method: Method) -> list[Plot]:
    curves = [Curve("heldout-losses", "Held-out loss", "nats per token", _losses(method))]
    if method.writes:
        title, unit = "Thoughts that hold the right working", "share, after probe prompts"
        curves.append(Curve("working-share", title, unit, (Line("working_share", "share"),)))
    return _drawn(path, curves)


def step_curves(path: Path, method: Method) -> list[Plot]:
    """What every step logs, as far as the method has it."""
    curves = [Curve("losses", "Loss", "nats per token", _losses(method))]
    if method.thinks:
        weight = (Line("mixing_weight", "weight"),)
        curves.append(Curve("mixing-weight", "Mixing weight", f"0 ignores the {method.one}", weight))
    if method.writes:
        curves += [
            Curve("reward", "Reward of a thought", "nats, summed over the lookahead", (Line("reward", "reward"),)),
            Curve(
                "positive-advantages",
                "Thoughts with a positive advantage",
                "share",
                (Line("positive_advantages", "share"),),
            ),
            Curve(
                "thought-entropy",
                "Entropy of the thoughts",
                "nats per thought token",
                (Line("thought_entropy", "entropy"),),
            ),
            Curve(
                "objective",
                "Objective",
                "as optimized",
                (Line("loss", "total"), Line("policy_loss", "policy part", PLAIN)),
            ),
        ]
    return _drawn(path, curves)


def step_warnings(path: Path) -> list[str]:
    """What `pipeline.training.warnings` finds wrong with the training steps."""
    return list(warnings(read_csv(path, ["step", *WATCHED])))


def base_model_curves(path: Path) -> list[Plot]:
    lines = (Line("loss", "training", PLAIN), Line("heldout_loss", "held-out"))
    return _drawn(path, [Curve("base-model", "Loss of the base model’s pretraining", "nats per token", lines)])


def _losses(method: Method) -> tuple[Line, ...]:
    if not method.thinks:
        return (Line("base_loss", "loss", PLAIN),)
    return (Line("base_loss", f"without {method.many}", PLAIN), Line("talk_loss", f"with {method.many}"))


def _drawn(path: Path, curves: list[Curve]) -> list[Plot]:
    """These curves of a log; one none of whose columns has a value is left out."""
    table = read_csv(path, ["step", *dict.fromkeys(line.column for curve in curves for line in curve.lines)])
    return [
        _curve(curve, table) for curve in curves if table[[line.column for line in curve.lines]].notna().any(axis=None)
    ]


def _curve(curve: Curve, table: pd.DataFrame) -> Plot:
    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for line in curve.lines:
            _draw_line(axes, table[["step", line.column]].dropna(), line)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if len(curve.lines) > 1:
            legend_above(axes)

    columns = [line.column for line in curve.lines]
    data = table[["step", *columns]].dropna(how="all", subset=columns)
    return plot(curve.name, curve.title, curve.unit, data, draw, HEIGHT)


def _draw_line(axes: Axes, points: pd.DataFrame, line: Line) -> None:
    """The points' line or, where there are many, a faint line of them under their moving average."""
    steps, values = points["step"], points[line.column]
    if len(points) <= FEW_POINTS:
        axes.plot(steps, values, color=line.colour, label=line.label, linewidth=1.6, marker="o", markersize=3)
        return
    smooth = values.rolling(len(points) // FEW_POINTS + 1, center=True, min_periods=1).mean()
    axes.plot(steps, values, color=line.colour, linewidth=0.7, alpha=0.35)
    axes.plot(steps, smooth, color=line.colour, label=line.label, linewidth=1.6)
