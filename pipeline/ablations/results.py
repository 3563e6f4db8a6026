"""The arms' figures as one table, as a Markdown page, and as the paper's figure."""

import io
import textwrap
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from pipeline import params
from pipeline.ablations.grid import Arm, digest, git
from pipeline.errors import UserError
from pipeline.evaluation.names import ACCURACY, BEFORE, CONTINUED, LOSS, MARKED, NORM, PROB
from pipeline.evaluation.statistics import mean_interval, totals
from pipeline.files import replacing, write_table
from pipeline.report.drawing import Axes, Figure, colormaps, style

FIGURES = "results/compare/figures.csv"
DONE, FAILED = "done", "failed"
MEASURES = {
    ACCURACY: "Accuracy",
    NORM: "Accuracy by byte",
    PROB: "Probability of the right answer",
    LOSS: "Loss, nats a token",
    MARKED: "Loss, nats a token, with thoughts after the marker alone",
}
COLUMNS = ["experiment", "settings", "state", "method", "thought_tokens", "lookahead", "task", "measure"]
COLUMNS += ["seeds", "n", "groups", "value", "low", "high"]
WHOLE = ("thought_tokens", "lookahead", "seeds", "n", "groups")  # integers, or empty

WIDTH, HEIGHT, LETTERS = 4.2, 3.2, 70  # of a panel: inches, and letters that fit across
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "ablations", "text.parse_math": False, "font.size": 9}
STYLE |= {"axes.spines.right": False, "axes.spines.top": False, "axes.grid": True, "grid.alpha": 0.2}
DASHES = {BEFORE: (4, 2), CONTINUED: (1, 1)}


def figures_of(arm: Arm) -> pd.DataFrame:
    """The figures of an arm that is done, from its commit: in the workspace every arm would find the same file."""
    return pd.read_csv(io.StringIO(git("show", f"{arm.ref}:{FIGURES}")))


def kept(path: Path, arms: Sequence[Arm]) -> pd.DataFrame:
    """The rows in the table at ``path`` of arms with the settings of ``arms`` that are done, whatever their code."""
    rows = _read(path, COLUMNS)
    if path.exists() and not {"experiment", "lookahead"} <= {*pd.read_csv(path, nrows=0)}:
        raise UserError(f"{path} is another table: give the grid's file another name")
    wanted = {arm.settings for arm in arms}
    return rows[rows["settings"].isin(wanted) & (rows["state"] == DONE)]


def table(
    arms: Sequence[Arm], kept: pd.DataFrame, done: Mapping[str, pd.DataFrame], failed: Collection[str]
) -> pd.DataFrame:
    """A row for each arm, task and measure: ``kept`` ones, and those in the figures of the arms that ``done`` names.

    An arm that ``failed`` has one row without figures, and one that has not been run has none.
    """
    parts = []
    for arm in arms:
        about = {"experiment": arm.name, "settings": arm.settings, **arm.about}
        if arm.name in failed:
            parts.append(pd.DataFrame([about | {"state": FAILED}], dtype=object))
        elif arm.name in done:
            figures = done[arm.name]
            parts.append(figures[figures["arm"] == arm.about["method"]].assign(state=DONE, **about))
        else:
            parts.append(kept[kept["settings"] == arm.settings])
    rows = pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)
    return rows.astype(dict.fromkeys(WHOLE, "Int64"))


def in_words(rows: pd.DataFrame, about: str, figure: Path) -> str:
    """The table as Markdown for GitHub: failed arms first, then for each task a table and a chart, then its parts."""
    every = rows.dropna(subset="thought_tokens")
    columns = "lookahead " + rows["lookahead"].astype(str)
    if every["method"].nunique() > 1:
        columns = rows["method"] + ", " + columns
    cells = [f"{row['value']:.3f} [{row['low']:.3f}, {row['high']:.3f}]" for _, row in rows.iterrows()]
    rows = rows.assign(column=columns, cell=cells)
    parts = ["# Ablations", about]
    failed = rows.loc[rows["state"] == FAILED, "experiment"]
    if len(failed):
        parts.append(f"**{len(failed)} of {rows['experiment'].nunique()} arms failed:** {', '.join(failed)}.")
    parts.append(f"![Accuracy against thought length]({figure.name})")
    shape = {"index": every["thought_tokens"].sort_values().unique(), "columns": columns[every.index].unique()}
    whole, of_part = _by_part(rows)
    for (measure, task), some in whole.dropna(subset="task").groupby(["measure", "task"], sort=True):
        parts.append(f"## {MEASURES[measure]}, {task}")
        plain, grid = some[some["thought_tokens"].isna()], some.dropna(subset="thought_tokens")
        if len(every):
            cells = grid.pivot(index="thought_tokens", columns="column", values="cell").reindex(**shape).fillna(FAILED)
            parts.append(markdown(cells.reset_index(names="thought tokens")))
        if len(plain):
            parts.append(" · ".join(plain["method"] + " " + plain["cell"]))
        if measure == ACCURACY and len(grid):
            # a chart in Mermaid, which GitHub draws; Mermaid has no gaps: a line must have every length
            means = grid.pivot(index="thought_tokens", columns="column", values="value").dropna(axis="columns")
            means = means.assign(**dict(zip(plain["method"], plain["value"], strict=True)))
            chart = ["```mermaid", "xychart-beta", f'  title "{task}"']
            chart.append(f'  x-axis "thought tokens" [{", ".join(map(str, means.index))}]')
            chart.append('  y-axis "accuracy" 0 --> 1')
            chart += [f"  line [{', '.join(f'{mean:.3f}' for mean in means[name])}]" for name in means]
            parts += ["\n".join([*chart, "```"]), f"Lines, in this order: {'; '.join(means)}."]
    about = rows.drop_duplicates("experiment").set_index("experiment")[["method", "thought_tokens", "lookahead"]]
    about = about.rename(columns={"thought_tokens": "thought tokens"})
    for task, some in of_part.groupby("of", sort=True):
        cells = some.pivot(index="experiment", columns="part", values="cell")
        cells = cells.reindex(index=about.index, columns=some["part"].unique()).fillna(FAILED)
        parts += [f"## {MEASURES[ACCURACY]}, {task} by part", markdown(about.join(cells))]
    return "\n\n".join(parts) + "\n"


def _by_part(rows: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Rows of whole tasks, and those of a task's parts (TASK/PART) with the task (``of``) and the ``part``."""
    names = rows["task"].astype("string").str.extract("^(?P<of>.*?)/(?P<part>.*)$")
    found = names["part"].notna()
    return rows[~found], rows[found].join(names)


def markdown(table: pd.DataFrame) -> str:
    """The table's columns in Markdown; a cell without a value is empty."""
    cells = table.astype(object).where(table.notna(), "").astype(str)
    lines = [list(table), ["---"] * len(table.columns), *cells.to_numpy()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def settings_now() -> str:
    """A digest of what params.yaml says of training and evaluation, but not of which arms, whatever the code."""
    return digest(str(replace(params.load(), arms=None, report=None, plan=None)))


def read_rows(path: Path, columns: list[str], settings: str) -> pd.DataFrame:
    """The rows of a table that is kept in git: those with these ``settings``, so that two defaults do not mix."""
    rows = _read(path, columns)
    return rows[rows["settings"] == settings]


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    """The rows of a table with these columns; none where there is no table yet. A digest may look like a number."""
    if not path.exists():
        return pd.DataFrame(columns=columns)
    return pd.read_csv(path, dtype={"settings": str}).reindex(columns=columns)


def add_rows(path: Path, found: pd.DataFrame, settings: str, keys: list[str], order: list[str]) -> None:
    """Write ``found`` now, as other experiments take long, beside the rows that other calls have written meanwhile.

    ``settings``: those that the experiments began with, as params.yaml may have changed since. The last row of equal
    ``keys`` and settings stays; ``order``: columns to sort by.
    """
    found = found.assign(settings=settings)
    rows = pd.concat([_read(path, list(found)), found])
    rows = rows.drop_duplicates([*keys, "settings"], keep="last")
    write_table(path, rows.sort_values(order, kind="stable"))


def over_seeds(values: pd.Series, bounds: tuple[float, float] | None) -> str:
    """The mean of ``values``, which lie within ``bounds``, with its 95 % Student interval and all of them."""
    values = values.dropna().to_numpy(float)
    every = ", ".join(f"{value:.3f}" for value in values)
    if len(values) < 2:
        return every
    low, high = mean_interval(totals(values), bounds)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]: {every}"


def write_figure(rows: pd.DataFrame, path: Path) -> None:
    """Draw accuracy against thought length as SVG, as in the paper's figure, with 95 % intervals.

    A panel per task has one line per method and lookahead; what has no thought length is dashed. Below are the tasks
    that have parts, a panel per method and lookahead with one line per part.
    """
    whole, of_part = _by_part(rows[rows["measure"] == ACCURACY])
    wholes = list(whole.groupby("task", sort=True))
    by_part = list(of_part.dropna(subset="thought_tokens").groupby(["of", "method", "lookahead"], sort=True))
    count, height = max(1, len(wholes), len(by_part)), 2 if by_part else 1
    with style.context(["default", STYLE]), replacing(path) as part:
        figure = Figure(figsize=(WIDTH * count, HEIGHT * height), layout="constrained", facecolor="white")
        axes = figure.subplots(height, count, squeeze=False)
        for axis, (task, some) in zip(axes[0], wholes, strict=False):
            grid, plain = some.dropna(subset="thought_tokens"), some[some["thought_tokens"].isna()]
            lookaheads = sorted(grid["lookahead"].unique())
            for (method, lookahead), line in grid.groupby(["method", "lookahead"], sort=True):
                _draw(axis, line, f"{method}, lookahead {lookahead}", lookaheads.index(lookahead), len(lookaheads))
            for _, row in plain.iterrows():
                axis.axhline(row["value"], color="0.35", linewidth=1, dashes=DASHES[row["method"]], label=row["method"])
                axis.axhspan(row["low"], row["high"], color="0.35", alpha=0.06, linewidth=0)
            axis.set_title(task)
        for axis, ((task, method, lookahead), some) in zip(axes[-1], by_part, strict=False):
            names = list(some["part"].unique())
            for rank, name in enumerate(names):
                _draw(axis, some[some["part"] == name], name, rank, len(names))
            axis.set_title(f"{task} by part: {method}, lookahead {lookahead}")
        for axis in axes.flat:
            if not axis.has_data():
                axis.remove()
                continue
            axis.set(xlabel="thought tokens", ylabel="accuracy", ylim=(0, 1.03))
            axis.set_xticks(sorted(rows["thought_tokens"].dropna().astype(int).unique()))
            axis.legend(fontsize=7, frameon=False)
        failed = rows.loc[rows["state"] == FAILED, "experiment"]
        if len(failed):
            names = textwrap.fill(f"failed: {', '.join(failed)}", width=LETTERS * count)
            figure.suptitle(names, color="crimson", fontsize=7)
        figure.savefig(part, format="svg", metadata={"Date": None, "Creator": None})


def _draw(axis: Axes, line: pd.DataFrame, label: str, rank: int, count: int) -> None:
    """Draw accuracies by thought length, the line of ``rank`` among ``count``; controls are dotted."""
    line, rewarded = line.sort_values("thought_tokens"), line["method"].iloc[0] == "quiet_star"
    errors = [line["value"] - line["low"], line["high"] - line["value"]]
    axis.errorbar(  # a little apart, so that equal lines can be told apart
        line["thought_tokens"].astype(int) + 0.09 * (rank - (count - 1) / 2),
        line["value"],
        yerr=[error.clip(lower=0) for error in errors],
        label=label,
        color=colormaps["viridis"].resampled(count + 1).colors[rank],
        marker="o" if rewarded else "s",
        linestyle="-" if rewarded else ":",
        capsize=2,
    )
