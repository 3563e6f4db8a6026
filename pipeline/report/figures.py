"""The figures of the results: every seed, bars by group of tokens, majorities, and the joint density."""

import re

import numpy as np
import pandas as pd

from pipeline.evaluation import names
from pipeline.evaluation.names import ACCURACY, HELDOUT, LOSS
from pipeline.report.drawing import INK, PLAIN, QUIET, THOUGHT, Axes, Figure, PercentFormatter, Plot, legend_above, plot
from pipeline.report.estimates import whole
from pipeline.report.method import Method, arm_name
from pipeline.report.quotes import visible
from pipeline.report.results import Results
from pipeline.report.where import group_name

LONGEST_LABEL = 30  # characters of a label beside a bar
ROW = 0.24  # inches for a horizontal bar
FAINTEST = 0.3  # opacity of the density's cells with the fewest tokens


def seeds(number: int, task: str, results: Results) -> Plot | None:
    """Every seed of every arm on a task, a dot each, and the interval of the arm's mean. None where there are none."""
    measure = LOSS if task == HELDOUT else ACCURACY
    rows = results.seeds[(results.seeds["task"] == task) & (results.seeds["measure"] == measure)]
    arms = [arm for arm in results.arms([task]) if arm in set(rows["arm"])]
    if not arms:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for place, arm in enumerate(arms):
            values = rows.loc[rows["arm"] == arm, "value"]
            whole_arm = results.figures[task, measure, arm]
            colour = THOUGHT if arm == results.method.key else INK
            axes.hlines(place, whole_arm["low"], whole_arm["high"], color=colour, linewidth=1.3, alpha=0.45)
            axes.plot(values, [place] * len(values), "o", color=colour, markersize=4, alpha=0.7, markeredgewidth=0)
        if task != HELDOUT:
            axes.set_xlim(-0.03, 1.03)
            axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        _label_rows(axes, [arm_name(arm) for arm in arms])

    unit = "loss, nats a token" if task == HELDOUT else "share of questions answered right"
    title = "held-out text" if task == HELDOUT else task
    return plot(_name("seeds", number, task), title, unit, rows, draw, len(arms) * ROW + 0.5)


def _name(kind: str, number: int, task: str) -> str:
    return f"{kind}-{number}-{re.sub(r'[^a-z0-9]+', '-', task.lower()).strip('-')}"


def _label_rows(axes: Axes, labels: list[str]) -> None:
    """Labels at the left, the first row on top, grid lines across."""
    shown = [visible(label, breaks=False) for label in labels]
    shown = [label if len(label) <= LONGEST_LABEL else f"{label[: LONGEST_LABEL - 1]}…" for label in shown]
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(False, axis="y")
    axes.grid(True, axis="x")


def votes(number: int, task: str, rows: pd.DataFrame, method: Method) -> Plot:
    """Accuracy over the number k of samples that vote, a line with its interval for each way of answering."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        for way in (way for way in (names.NO_THOUGHT, names.THOUGHT) if way in method.ways):
            line, label = rows[rows["way"] == way].sort_values("k"), method.ways[way]
            # the dashes tell the lines apart without colours
            colour, style = (THOUGHT, "-") if way == names.THOUGHT else (PLAIN, "--")
            axes.fill_between(line["k"], line["ci_low"], line["ci_high"], color=colour, alpha=0.2, linewidth=0)
            look = {"color": colour, "linewidth": 1.6, "marker": "o", "markersize": 3.5}
            axes.plot(line["k"], line["accuracy"], style, label=label, **look)
        axes.set_xscale("log", base=2)
        ticks = sorted(rows["k"].unique())
        axes.set_xticks(ticks, [whole(tick) for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(PercentFormatter(1))
        axes.set_xlabel("samples that vote")
        legend_above(axes)

    return plot(_name("votes", number, task), task, "accuracy, 95% interval", rows, draw, 2.3)


def decile_bars(name: str, title: str, deciles: pd.DataFrame) -> Plot:
    """The improvement by decile of the loss before training."""

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

    return plot(name, title, "improvement, nats per token", deciles, draw, 2.4)


def group_bars(name: str, title: str, groups: pd.DataFrame) -> Plot:
    """The improvement by group of tokens, with each group's share of all tokens."""

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        places = range(len(groups))
        axes.barh(places, groups["improvement"], color=_sides(groups["improvement"]), height=0.62)
        axes.hlines(places, groups["ci_low"], groups["ci_high"], color=INK, linewidth=1.3)
        axes.axvline(0, color=INK, linewidth=0.6)
        axes.locator_params(axis="x", nbins=5)
        _label_rows(axes, [group_name(group) for group in groups["group"]])
        beside = {"transform": axes.get_yaxis_transform(), "color": QUIET, "fontsize": 9}
        for place, share in zip(places, groups["share"], strict=True):
            axes.text(1.03, place, f"{100 * share:.0f}%" if share >= 0.005 else "<1%", va="center", **beside)
        axes.text(1.03, -0.75, "of tokens", va="bottom", **beside)

    return plot(name, title, "improvement, nats per token", groups, draw, max(len(groups), 3) * ROW + 0.6)


def _sides(improvement: pd.Series) -> list[str]:
    return [THOUGHT if value >= 0 else PLAIN for value in improvement]


def density(cells: pd.DataFrame) -> Plot:
    """Tokens by loss before training and improvement: the stronger the colour, the more, on a log scale."""

    def spacing(centres: pd.Series) -> float:
        gaps = np.diff(np.unique(centres))  # bins are equally wide, but empty ones are not in the table
        return float(gaps.min()) if len(gaps) else 1.0

    def draw(figure: Figure) -> None:
        axes = figure.add_subplot()
        share = np.log1p(cells["tokens"]) / np.log1p(cells["tokens"].max())
        opacity = FAINTEST + (1 - FAINTEST) * share
        colours = list(zip(_sides(cells["improvement"]), opacity, strict=True))
        width, height = spacing(cells["base_loss"]), spacing(cells["improvement"])
        low = cells["improvement"] - height / 2
        axes.bar(cells["base_loss"], height=height, bottom=low, width=width, color=colours, linewidth=0)
        axes.axhline(0, color=INK, linewidth=0.6)
        axes.set_xlabel("loss before training, nats")
        axes.set_ylabel("improvement, nats")

    unit = f"{whole(cells['tokens'].min())} to {whole(cells['tokens'].max())} tokens a cell"
    return plot("density", "Loss and improvement of every token", unit, cells, draw, 2.9)
