"""The figures of the results: bars by arm and by group of tokens, votes, and the joint density."""

import re

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullLocator, PercentFormatter

from pipeline.report.comparisons import arm_name
from pipeline.report.drawing import INK, PLAIN, QUIET, THOUGHT, Plot, plot
from pipeline.report.estimates import whole
from pipeline.report.heat_map import visible
from pipeline.report.method import Method
from pipeline.report.where import group_name

LONGEST_LABEL = 24  # characters of a label beside a bar
ROW = 0.24  # inches for a horizontal bar
FAINTEST = 0.3  # opacity of the density's cells with the fewest tokens


def accuracy_by_arm(figures: pd.DataFrame, method: Method) -> Plot:
    """A bar an arm, tasks one below the other; the run's own bar has the colour of thoughts."""
    rows = figures[figures["measure"] == "accuracy"]
    tasks = rows["task"].unique()

    def draw(figure: Figure) -> None:
        counts = [(rows["task"] == task).sum() for task in tasks]
        panels = figure.subplots(len(tasks), sharex=True, squeeze=False, height_ratios=counts)[:, 0]
        for axes, task in zip(panels, tasks, strict=True):
            _draw_arms(axes, rows[rows["task"] == task], method)
            axes.set_title(visible(task), loc="left", fontsize=9.5, color=QUIET)

    height = len(rows) * ROW + len(tasks) * 0.3 + 0.25
    return plot("accuracy", "Accuracy by way of training", "share of questions, 95% interval", rows, draw, height)


def _draw_arms(axes: Axes, rows: pd.DataFrame, method: Method) -> None:
    places = np.arange(len(rows))
    colours = [THOUGHT if arm == method.key else to_rgba(INK, 0.3) for arm in rows["arm"]]
    axes.barh(places, rows["mean"], color=colours, height=0.62)
    axes.hlines(places, rows["ci_low"], rows["ci_high"], color=INK, linewidth=1.3)
    for place, mean in zip(places, rows["mean"], strict=True):
        axes.text(1.03, place, f"{100 * mean:.1f}%", va="center", fontsize=9)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    _label_rows(axes, [arm_name(arm) for arm in rows["arm"]])


def _label_rows(axes: Axes, labels: list[str]) -> None:
    """Words at the left, the first row on top, a grid across."""
    axes.set_yticks(range(len(labels)), [_label(label) for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")


def _label(text: str) -> str:
    shown = visible(text, breaks=False)
    return shown if len(shown) <= LONGEST_LABEL else f"{shown[: LONGEST_LABEL - 1]}…"


def votes(number: int, task: str, rows: pd.DataFrame, method: Method) -> Plot:
    """Accuracy against the number of samples that vote, a line with its interval for each way of answering."""
    ways = [way for way in method.ways if way in set(rows["way"])]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for way in ways:
            _draw_votes(axes, rows[rows["way"] == way].sort_values("k"), way, method.ways[way])
        axes.set_xscale("log", base=2)
        ticks = sorted(rows["k"].unique())
        axes.xaxis.set_major_locator(FixedLocator(ticks))
        axes.xaxis.set_major_formatter(FixedFormatter([f"{tick:.0f}" for tick in ticks]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=None))
        axes.set_xlabel("samples that vote")
        legend_above(axes)

    name = f"votes-{number}-{re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')}"
    return plot(name, task, "accuracy, 95% interval", rows, draw, 2.3)


def _draw_votes(axes: Axes, line: pd.DataFrame, way: str, label: str) -> None:
    colour = THOUGHT if way == "thought" else PLAIN
    axes.fill_between(line["k"], line["ci_low"], line["ci_high"], color=colour, alpha=0.2, linewidth=0)
    style = "-" if way == "thought" else "--"  # told apart without colours as well
    axes.plot(line["k"], line["accuracy"], style, color=colour, label=label, linewidth=1.6, marker="o", markersize=3.5)


def legend_above(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=2, borderaxespad=0)


def decile_bars(deciles: pd.DataFrame) -> Plot:
    """The improvement by decile of the base loss."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(deciles))
        axes.bar(places, deciles["improvement"], color=_sides(deciles["improvement"]), width=0.7)
        axes.vlines(places, deciles["ci_low"], deciles["ci_high"], color=INK, linewidth=1.3)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xticks(places, deciles["group"])
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.set_xlabel("tenth of the tokens, from the easiest to the hardest")

    return plot("deciles", "By difficulty", "improvement, nats per token", deciles, draw, 2.4)


def group_bars(name: str, title: str, groups: pd.DataFrame) -> Plot:
    """The improvement by group of tokens, with each group's share of all tokens."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(groups))
        axes.barh(places, groups["improvement"], color=_sides(groups["improvement"]), height=0.62)
        axes.hlines(places, groups["ci_low"], groups["ci_high"], color=INK, linewidth=1.3)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5))
        _label_rows(axes, [group_name(group) for group in groups["group"]])
        for place, share in zip(places, groups["share"], strict=True):
            label = f"{100 * share:.0f}%" if share >= 0.005 else "<1%"
            axes.text(1.03, place, label, transform=axes.get_yaxis_transform(), va="center", color=QUIET, fontsize=9)
        axes.text(1.03, -0.75, "of tokens", transform=axes.get_yaxis_transform(), va="bottom", color=QUIET, fontsize=9)

    return plot(name, title, "improvement, nats per token", groups, draw, max(len(groups), 3) * ROW + 0.6)


def _sides(improvement: pd.Series) -> list[str]:
    return [THOUGHT if value >= 0 else PLAIN for value in improvement]


def density(cells: pd.DataFrame, method: Method) -> Plot:
    """How many tokens have which base loss and improvement; the stronger a colour, the more, by their logarithm."""
    width, height = _spacing(cells["base_loss"]), _spacing(cells["improvement"])
    share = np.log1p(cells["tokens"]) / np.log1p(cells["tokens"].max())
    colours = [
        to_rgba(colour, FAINTEST + (1 - FAINTEST) * alpha)
        for colour, alpha in zip(_sides(cells["improvement"]), share, strict=True)
    ]

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        low = cells["improvement"] - height / 2
        axes.bar(cells["base_loss"], height=height, bottom=low, width=width, color=colours, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xlabel(f"loss without {method.many}, nats")
        axes.set_ylabel("improvement, nats")

    unit = f"{whole(cells['tokens'].min())} to {whole(cells['tokens'].max())} tokens a cell"
    return plot("density", "Loss and improvement of every token", unit, cells, draw, 2.9)


def _spacing(centres: pd.Series) -> float:
    """The width of equal bins, some of which are empty, from the centres of the others."""
    gaps = np.diff(np.unique(centres))
    return float(gaps.min()) if len(gaps) else 1.0
