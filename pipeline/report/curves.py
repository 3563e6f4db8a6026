"""How training went: the logs' columns over the optimizer steps."""

from pathlib import Path
from typing import NamedTuple

from pipeline.report.drawing import PLAIN, THOUGHT, Figure, Plot, legend_above, plot
from pipeline.report.method import Method
from pipeline.report.reading import read_csv
from pipeline.training.warnings import WATCHED, warnings

FEW_POINTS = 25  # up to this many points each is marked; more are smoothed over 1 / FEW_POINTS of them
NATS = "nats per token"


class Line(NamedTuple):
    column: str
    label: str = ""  # shown where a figure has several lines
    colour: str = THOUGHT


def training_curves(results: Path, run: str, method: Method) -> list[Plot]:
    """The figures of the logs of ``run`` (METHOD-SEED) in ``results``; one whose columns are all blank is left out.

    Losses with and without thoughts are means over the same targets, those of talk_loss: their distance is the gain.
    """
    heldout, steps = (results / "train" / run / name for name in ("heldout.csv", "steps.csv"))
    losses = [Line("base_loss", colour=PLAIN)]
    if method.thinks:
        without = Line("base_loss_ahead", f"without {method.many}", PLAIN)
        losses = [without, Line("talk_loss", f"with {method.many}")]
    plots = [_curve(heldout, "heldout-losses", "Held-out loss", NATS, *losses)]
    if method.writes:
        title, unit = "Thoughts that contain the right working", "share, after probe prompts"
        tasks = Line("working_share_rings", "rings"), Line("working_share_animals", "animals", PLAIN)
        plots.append(_curve(heldout, "working-share", title, unit, *tasks))
    plots.append(_curve(steps, "losses", "Loss", NATS, *losses))
    if method.thinks:
        unit = f"0 ignores the {method.one}"
        plots.append(_curve(steps, "mixing-weight", "Mixing weight", unit, Line("mixing_weight")))
    if method.writes:
        positive, entropy_unit = "Thoughts with a positive advantage", "nats per thought token"
        objective = Line("loss", "total"), Line("policy_loss", "policy part", PLAIN)
        plots += [
            _curve(steps, "reward", "Reward of a thought", "nats, summed over the lookahead", Line("reward")),
            _curve(steps, "positive-advantages", positive, "share", Line("positive_advantages")),
            _curve(steps, "thought-entropy", "Entropy of the thoughts", entropy_unit, Line("thought_entropy")),
            _curve(steps, "objective", "Objective", "as optimized", *objective),
        ]
    lines = Line("loss", "training", PLAIN), Line("heldout_loss", "held-out")
    title = "Loss of the base model’s pretraining"
    plots.append(_curve(results / "base_model/steps.csv", "base-model", title, NATS, *lines))
    return list(filter(None, plots))


def step_warnings(results: Path, run: str) -> list[str]:
    """What the rules of `pipeline.training.warnings` say about the training log."""
    log = results / "train" / run
    steps = read_csv(log / "steps.csv", "step", *WATCHED)
    return list(warnings(steps, read_csv(log / "heldout.csv", "step", "base_loss")))


def _curve(log: Path, name: str, title: str, unit: str, *lines: Line) -> Plot | None:
    """Lines that are marked or, with many points, faint under their moving averages. None if all columns are blank."""
    columns = [line.column for line in lines]
    data = read_csv(log, "step", *columns).dropna(how="all", subset=columns)

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for column, label, colour in lines:
            points = data[["step", column]].dropna()
            steps, values = points["step"], points[column]
            if len(points) <= FEW_POINTS:
                axes.plot(steps, values, color=colour, label=label, linewidth=1.6, marker="o", markersize=3)
                continue
            smooth = values.rolling(len(points) // FEW_POINTS + 1, center=True, min_periods=1).mean()
            axes.plot(steps, values, color=colour, linewidth=0.7, alpha=0.35)
            axes.plot(steps, smooth, color=colour, label=label, linewidth=1.6)
        axes.set_xlabel("step")
        axes.locator_params(axis="x", nbins=5, integer=True)
        if len(lines) > 1:
            legend_above(axes)

    return plot(name, title, unit, data, draw, 2.3) if len(data) else None
