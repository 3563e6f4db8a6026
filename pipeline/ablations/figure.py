"""Accuracy against thought length, as in the paper's figure: one line per lookahead, the base model dashed."""

import textwrap
from pathlib import Path

import pandas as pd
from matplotlib import colormaps, style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pipeline.ablations.results import BASE, FAILED
from pipeline.files import replacing

WIDTH, HEIGHT = 4.2, 3.2  # of a panel, inches
APART = 0.09  # thought tokens between lines, so that equal lines can be told apart
LETTERS = 70  # that fit across a panel
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ablations", "text.parse_math": False, "font.size": 9}
STYLE |= {"axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.2}
DASHES = {BASE: (4, 2), "no_thought": (1, 1)}
MARKERS = {"quiet_star": "o", "pause": "s"}


def write_figure(rows: pd.DataFrame, path: Path) -> None:
    """Draw the accuracies in ``rows`` (`results.table`) as SVG with 95 % intervals, one panel per task."""
    panels = list(rows[rows["measure"] == "accuracy"].groupby("task", sort=True))
    count = max(1, len(panels))
    with style.context(["default", STYLE]), replacing(path) as part:
        figure = Figure(figsize=(WIDTH * count, HEIGHT), layout="constrained", facecolor="white")
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, (task, some) in zip(axes, panels, strict=False):
            _panel(axis, task, some)
        failed = rows.loc[rows["state"] == FAILED, "experiment"]
        if len(failed):
            names = textwrap.fill(f"failed: {', '.join(failed)}", width=LETTERS * count)
            figure.suptitle(names, color="crimson", fontsize=7)
        figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})


def _panel(axis: Axes, task: str, some: pd.DataFrame) -> None:
    grid = some.dropna(subset="thought_tokens")
    lookaheads = sorted(grid["lookahead"].unique())
    colours = colormaps["viridis"].resampled(len(lookaheads) + 1).colors
    for (method, lookahead), line in grid.groupby(["method", "lookahead"], sort=True):
        line, rank = line.sort_values("thought_tokens"), lookaheads.index(lookahead)
        axis.errorbar(
            line["thought_tokens"].astype(int) + APART * (rank - (len(lookaheads) - 1) / 2),
            line["mean"],
            yerr=[(line["mean"] - line["ci_low"]).clip(lower=0), (line["ci_high"] - line["mean"]).clip(lower=0)],
            label=f"{method}, lookahead {lookahead}",
            color=colours[rank],
            marker=MARKERS.get(method, "^"),
            linestyle="-" if method == "quiet_star" else ":",
            capsize=2,
        )
    for _, row in some[some["thought_tokens"].isna()].iterrows():
        axis.axhline(row["mean"], color="0.35", linewidth=1, dashes=DASHES[row["method"]], label=row["method"])
        axis.axhspan(row["ci_low"], row["ci_high"], color="0.35", alpha=0.06, linewidth=0)
    axis.set(title=task, xlabel="thought tokens", ylabel="accuracy", ylim=(0, 1.03))
    axis.set_xticks(sorted(grid["thought_tokens"].astype(int).unique()))
    axis.legend(fontsize=7, frameon=False)
