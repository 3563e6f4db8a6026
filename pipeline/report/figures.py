"""Inline SVG figures that take their colours from the page, so that they follow its light or dark scheme."""

import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd
from markupsafe import Markup
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# matplotlib knows no CSS: it draws in these stand-ins, which _recolour replaces in the finished SVG
INK, THOUGHT, PLAIN = "#010203", "#010204", "#010205"
CSS_COLOURS = {INK: "currentColor", THOUGHT: "var(--thought)", PLAIN: "var(--plain)"}
STYLE = {
    "svg.fonttype": "none",
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.formatter.useoffset": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "grid.alpha": 0.2,
    "grid.color": INK,
    "grid.linewidth": 0.5,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
SIZE = (4.2, 2.5)  # inches; the page scales it
NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))
FEW_POINTS = 25  # up to here each point is marked; above, the line is smoothed over this part of the points


@dataclass(frozen=True)
class Line:
    column: str
    label: str
    colour: str = THOUGHT


@dataclass(frozen=True)
class Plot:
    """A finished figure: ``svg`` goes into the page as it is, ``data`` is a ``data:`` link to its numbers as CSV."""

    name: str
    title: str
    unit: str
    svg: Markup
    data: str


BOTH_LOSSES = (Line("base_loss", "without thoughts", PLAIN), Line("talk_loss", "with thoughts"))
TRAINING = (
    ("losses", "Loss", "nats per token", BOTH_LOSSES),
    ("reward", "Reward of a thought", "nats, summed over the lookahead", (Line("reward", "reward"),)),
    ("positive-advantages", "Thoughts with a positive advantage", "share", (Line("positive_advantages", "share"),)),
    ("mixing-weight", "Mixing weight", "0 ignores the thought", (Line("mixing_weight", "weight"),)),
    ("thought-entropy", "Entropy of the thoughts", "nats per thought token", (Line("thought_entropy", "entropy"),)),
    ("objective", "Objective", "as optimized", (Line("loss", "total"), Line("policy_loss", "policy part", PLAIN))),
)
HELD_OUT = (
    ("heldout-losses", "Held-out loss", "nats per token", BOTH_LOSSES),
    (
        "working-share",
        "Thoughts that hold the right working",
        "share, after probe prompts",
        (Line("working_share", "share"),),
    ),
)
PRETRAINING = (Line("loss", "training", PLAIN), Line("heldout_loss", "held-out"))
BASE_MODEL = (("base-model", "Loss of the base model's pretraining", "nats per token", PRETRAINING),)


def curves(table: pd.DataFrame, plots: tuple) -> list[Plot]:
    """These plots against ``step``; a plot none of whose columns has a value is left out."""
    return [
        _curve(name, title, unit, table, lines)
        for name, title, unit, lines in plots
        if table[[line.column for line in lines]].notna().any(axis=None)
    ]


def _curve(name: str, title: str, unit: str, table: pd.DataFrame, lines: tuple[Line, ...]) -> Plot:
    def draw(axes: Axes) -> None:
        for line in lines:
            _draw_line(axes, table[["step", line.column]].dropna(), line)
        axes.set_xlabel("step")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        if len(lines) > 1:
            axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0)

    data = table[["step", *(line.column for line in lines)]].dropna(how="all", subset=[line.column for line in lines])
    return Plot(name, title, unit, _svg(name, title, draw), _csv_link(data))


def _draw_line(axes: Axes, points: pd.DataFrame, line: Line) -> None:
    """The points' line or, where there are many, a faint line of them under their moving average."""
    steps, values = points["step"], points[line.column]
    if len(points) <= FEW_POINTS:
        axes.plot(steps, values, color=line.colour, label=line.label, linewidth=1.6, marker="o", markersize=3)
        return
    smooth = values.rolling(len(points) // FEW_POINTS + 1, center=True, min_periods=1).mean()
    axes.plot(steps, values, color=line.colour, linewidth=0.7, alpha=0.35)
    axes.plot(steps, smooth, color=line.colour, label=line.label, linewidth=1.6)


def decile_bars(deciles: pd.DataFrame) -> Plot:
    """The improvement in nats per token by decile of the base loss, with its interval."""

    def draw(axes: Axes) -> None:
        colours = [THOUGHT if value >= 0 else PLAIN for value in deciles["improvement"]]
        axes.bar(deciles["decile"], deciles["improvement"], color=colours, width=0.72, alpha=0.85)
        axes.vlines(deciles["decile"], deciles["ci_low"], deciles["ci_high"], color=INK, linewidth=1.2)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xticks(deciles["decile"])
        axes.set_xlabel("decile of the loss without thoughts (1: easiest tokens)")

    title = "Improvement by difficulty"
    return Plot("deciles", title, "nats per token", _svg("deciles", title, draw), _csv_link(deciles))


def _svg(name: str, title: str, draw: Callable[[Axes], None]) -> Markup:
    target = io.StringIO()
    # "default" first: a matplotlibrc of the machine must not change the bytes; the salt makes ids unique in the page
    with style.context(["default", STYLE | {"svg.hashsalt": name}]):
        figure = Figure(figsize=SIZE, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(target, format="svg", transparent=True, metadata=NO_METADATA)
    return Markup(_inline(target.getvalue(), title))


def _inline(svg: str, title: str) -> str:
    """Strips what only a file of its own needs: the prolog, the size and the ids of groups, which repeat."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', rf'<svg \1 role="img" aria-label="{title}">', svg, count=1)
    for stand_in, colour in CSS_COLOURS.items():
        svg = svg.replace(stand_in, colour)
    return svg.replace("xlink:href", "href")


def _csv_link(table: pd.DataFrame) -> str:
    return "data:text/csv;charset=utf-8," + quote(table.to_csv(index=False, lineterminator="\n"), safe=",.-")
