"""How training went: the logs' columns over the optimizer steps."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.report.drawing import PLAIN, THOUGHT, Axes, Figure, Plot, legend_above, plot
from pipeline.report.method import Method
from pipeline.report.reading import read_csv
from pipeline.training.warnings import WATCHED, warnings

FEW_POINTS = 25  # up to this many points each is marked; more are smoothed over 1 / FEW_POINTS of them
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


def training_curves(results: Path, method: Method) -> list[Plot]:
    """The figures of the logs in ``results``; one whose columns are all blank is left out."""
    losses: tuple[Line, ...] = (Line("base_loss", "loss", PLAIN),)
    if method.thinks:
        losses = (Line("base_loss", f"without {method.many}", PLAIN), Line("talk_loss", f"with {method.many}"))
    heldout = [Curve("heldout-losses", "Held-out loss", "nats per token", losses)]
    steps = [Curve("losses", "Loss", "nats per token", losses)]
    if method.thinks:
        unit = f"0 ignores the {method.one}"
        steps.append(Curve("mixing-weight", "Mixing weight", unit, (Line("mixing_weight", "weight"),)))
    if method.writes:
        title, unit = "Thoughts that contain the right working", "share, after probe prompts"
        heldout.append(Curve("working-share", title, unit, (Line("working_share", "share"),)))
        title, unit = "Reward of a thought", "nats, summed over the lookahead"
        steps.append(Curve("reward", title, unit, (Line("reward", "reward"),)))
        title, line = "Thoughts with a positive advantage", Line("positive_advantages", "share")
        steps.append(Curve("positive-advantages", title, "share", (line,)))
        title, line = "Entropy of the thoughts", Line("thought_entropy", "entropy")
        steps.append(Curve("thought-entropy", title, "nats per thought token", (line,)))
        lines = (Line("loss", "total"), Line("policy_loss", "policy part", PLAIN))
        steps.append(Curve("objective", "Objective", "as optimized", lines))
    pretraining = (Line("loss", "training", PLAIN), Line("heldout_loss", "held-out"))
    base_model = Curve("base-model", "Loss of the base model’s pretraining", "nats per token", pretraining)
    return [
        *_drawn(results / "train/heldout.csv", heldout),
        *_drawn(results / "train/steps.csv", steps),
        *_drawn(results / "base_model/steps.csv", [base_model]),
    ]


def step_warnings(results: Path) -> list[str]:
    """What the rules of `pipeline.training.warnings` say about the training log."""
    return list(warnings(read_csv(results / "train/steps.csv", "step", *WATCHED)))


def _drawn(path: Path, curves: list[Curve]) -> list[Plot]:
    table = read_csv(path, "step", *dict.fromkeys(line.column for curve in curves for line in curve.lines))
    plots = []
    for curve in curves:
        columns = [line.column for line in curve.lines]
        data = table[["step", *columns]].dropna(how="all", subset=columns)

        def draw(figure: Figure, curve: Curve = curve, data: pd.DataFrame = data) -> None:
            axes = figure.add_subplot()
            for line in curve.lines:
                _draw_line(axes, data[["step", line.column]].dropna(), line)
            axes.set_xlabel("step")
            axes.locator_params(axis="x", nbins=5, integer=True)
            if len(curve.lines) > 1:
                legend_above(axes)

        if len(data):
            plots.append(plot(curve.name, curve.title, curve.unit, data, draw, HEIGHT))
    return plots


def _draw_line(axes: Axes, points: pd.DataFrame, line: Line) -> None:
    """A marked line or, with many points, a faint line under its moving average."""
    steps, values = points["step"], points[line.column]
    if len(points) <= FEW_POINTS:
        axes.plot(steps, values, color=line.colour, label=line.label, linewidth=1.6, marker="o", markersize=3)
        return
    smooth = values.rolling(len(points) // FEW_POINTS + 1, center=True, min_periods=1).mean()
    axes.plot(steps, values, color=line.colour, linewidth=0.7, alpha=0.35)
    axes.plot(steps, smooth, color=line.colour, label=line.label, linewidth=1.6)
