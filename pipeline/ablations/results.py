"""The arms' figures as one table, as a Markdown page, and as the paper's figure."""

import io
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd
from matplotlib import colormaps, style
from matplotlib.figure import Figure

from pipeline.ablations.grid import Arm, git
from pipeline.files import replacing

FIGURES = "results/compare/figures.csv"
BASE = "base"
DONE, FAILED = "done", "failed"
MEASURES = {"accuracy": "Accuracy", "prob": "Probability of the right answer"}
COLUMNS = ["experiment", "state", "method", "thought_tokens", "lookahead", "task", "measure", "seeds", "n", "mean"]
COLUMNS += ["ci_low", "ci_high"]
WHOLE = ("thought_tokens", "lookahead", "seeds", "n")  # integers, or empty

WIDTH, HEIGHT, LETTERS = 4.2, 3.2, 70  # of a panel: inches, and letters that fit across
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ablations", "text.parse_math": False, "font.size": 9}
STYLE |= {"axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.2}
DASHES = {BASE: (4, 2), "no_thought": (1, 1)}
MARKERS = {"quiet_star": "o", "pause": "s"}


def table(arms: Sequence[Arm], failed: Collection[str]) -> pd.DataFrame:
    """A row for each arm, task and measure, and for the base model; an arm that failed has one row without figures."""
    parts, base = [], pd.DataFrame()
    for arm in arms:
        about = {"experiment": arm.name, "method": arm.method}
        about |= {"thought_tokens": arm.thought_tokens, "lookahead": arm.lookahead}
        if arm.name in failed:
            parts.append(pd.DataFrame([about | {"state": FAILED}], dtype=object))
            continue
        # of the arm's commit: in the workspace every arm would find the same file
        figures = pd.read_csv(io.StringIO(git("show", f"{arm.ref}:{FIGURES}")))
        parts.append(figures[figures["arm"] == arm.method].assign(state=DONE, **about))
        if base.empty:  # the base model's figures are the same in every arm
            base = figures[figures["arm"] == BASE]
            parts.append(base.assign(experiment="", state=DONE, method=BASE))
    rows = pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)
    return rows.astype(dict.fromkeys(WHOLE, "Int64"))


def in_words(rows: pd.DataFrame, about: str, figure: Path) -> str:
    """The table as Markdown for GitHub: failed arms first, then for each task a table and a chart."""
    every = rows.dropna(subset="thought_tokens")
    columns = "lookahead " + rows["lookahead"].astype(str)
    if every["method"].nunique() > 1:
        columns = rows["method"] + ", " + columns
    cells = [f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]" for _, row in rows.iterrows()]
    rows = rows.assign(column=columns, cell=cells)
    parts = ["# Ablations", about]
    failed = rows.loc[rows["state"] == FAILED, "experiment"]
    if len(failed):
        arms = rows.loc[rows["method"] != BASE, "experiment"].nunique()
        parts.append(f"**{len(failed)} of {arms} arms failed:** {', '.join(failed)}.")
    parts.append(f"![Accuracy against thought length]({figure.name})")
    shape = {"index": every["thought_tokens"].sort_values().unique(), "columns": columns[every.index].unique()}
    for (measure, task), some in rows.dropna(subset="task").groupby(["measure", "task"], sort=True):
        parts.append(f"## {MEASURES[measure]}, {task}")
        plain, grid = some[some["thought_tokens"].isna()], some.dropna(subset="thought_tokens")
        if len(every):
            cells = grid.pivot(index="thought_tokens", columns="column", values="cell").reindex(**shape).fillna(FAILED)
            lines = [["thought tokens", *cells], ["---"] * (1 + len(cells.columns))]
            lines += [[str(length), *line] for length, line in zip(cells.index, cells.to_numpy(), strict=True)]
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if len(plain):
            parts.append(" · ".join(plain["method"] + " " + plain["cell"]))
        if measure == "accuracy" and len(grid):
            # a chart in Mermaid, which GitHub draws; Mermaid has no gaps: a line must have every length
            means = grid.pivot(index="thought_tokens", columns="column", values="mean").dropna(axis="columns")
            means = means.assign(**dict(zip(plain["method"], plain["mean"], strict=True)))
            chart = ["```mermaid", "xychart-beta", f'  title "{task}"']
            chart.append(f'  x-axis "thought tokens" [{", ".join(map(str, means.index))}]')
            chart.append('  y-axis "accuracy" 0 --> 1')
            chart += [f"  line [{', '.join(f'{mean:.3f}' for mean in means[name])}]" for name in means]
            parts += ["\n".join([*chart, "```"]), f"Lines, in this order: {'; '.join(means)}."]
    return "\n\n".join(parts) + "\n"


def write_figure(rows: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against thought length as SVG, as in the paper's figure, with 95 % intervals.

    A panel per task has one line per method and lookahead; what has no thought length is dashed.
    """
    panels = list(rows[rows["measure"] == "accuracy"].groupby("task", sort=True))
    count = max(1, len(panels))
    with style.context(["default", STYLE]), replacing(path) as part:
        figure = Figure(figsize=(WIDTH * count, HEIGHT), layout="constrained", facecolor="white")
        axes = figure.subplots(1, count, squeeze=False)[0]
        for axis, (task, some) in zip(axes, panels, strict=False):
            grid, plain = some.dropna(subset="thought_tokens"), some[some["thought_tokens"].isna()]
            lookaheads = sorted(grid["lookahead"].unique())
            colours = colormaps["viridis"].resampled(len(lookaheads) + 1).colors
            for (method, lookahead), line in grid.groupby(["method", "lookahead"], sort=True):
                line, rank = line.sort_values("thought_tokens"), lookaheads.index(lookahead)
                errors = [line["mean"] - line["ci_low"], line["ci_high"] - line["mean"]]
                axis.errorbar(  # a little apart, so that equal lines can be told apart
                    line["thought_tokens"].astype(int) + 0.09 * (rank - (len(lookaheads) - 1) / 2),
                    line["mean"],
                    yerr=[error.clip(lower=0) for error in errors],
                    label=f"{method}, lookahead {lookahead}",
                    color=colours[rank],
                    marker=MARKERS[method],
                    linestyle="-" if method == "quiet_star" else ":",
                    capsize=2,
                )
            for _, row in plain.iterrows():
                axis.axhline(row["mean"], color="0.35", linewidth=1, dashes=DASHES[row["method"]], label=row["method"])
                axis.axhspan(row["ci_low"], row["ci_high"], color="0.35", alpha=0.06, linewidth=0)
            axis.set(title=task, xlabel="thought tokens", ylabel="accuracy", ylim=(0, 1.03))
            axis.set_xticks(sorted(grid["thought_tokens"].astype(int).unique()))
            axis.legend(fontsize=7, frameon=False)
        failed = rows.loc[rows["state"] == FAILED, "experiment"]
        if len(failed):
            names = textwrap.fill(f"failed: {', '.join(failed)}", width=LETTERS * count)
            figure.suptitle(names, color="crimson", fontsize=7)
        figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})
