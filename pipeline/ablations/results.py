"""The arms' figures as one table, and as a Markdown page."""

import io
from collections.abc import Collection, Sequence
from pathlib import Path

import pandas as pd

from pipeline.ablations import experiments
from pipeline.ablations.grid import Arm

FIGURES = "results/compare/figures.csv"
BASE = "base"
DONE, FAILED = "done", "failed"
MEASURES = {"accuracy": "Accuracy", "prob": "Probability of the right answer"}
COLUMNS = ["experiment", "state", "method", "thought_tokens", "lookahead", "task", "measure", "seeds", "n", "mean"]
COLUMNS += ["ci_low", "ci_high"]
WHOLE = ("thought_tokens", "lookahead", "seeds", "n")  # integers, or empty


def table(arms: Sequence[Arm], failed: Collection[str]) -> pd.DataFrame:
    """A row for each arm, task and measure, and for the base model; an arm that failed has one row without figures."""
    parts, base = [], pd.DataFrame()
    for arm in arms:
        sizes = {"thought_tokens": arm.thought_tokens, "lookahead": arm.lookahead}
        if arm.name in failed:
            row = {"experiment": arm.name, "state": FAILED, "method": arm.method, **sizes}
            parts.append(pd.DataFrame([row], dtype=object))
            continue
        figures = pd.read_csv(io.StringIO(experiments.read(arm, FIGURES)))
        own = figures[figures["arm"] == arm.method]
        parts.append(own.assign(experiment=arm.name, state=DONE, method=arm.method, **sizes))
        if base.empty:  # the base model's figures are the same in every arm
            base = figures[figures["arm"] == BASE]
            parts.append(base.assign(experiment="", state=DONE, method=BASE))
    rows = pd.concat(parts, ignore_index=True).reindex(columns=COLUMNS)
    return rows.astype(dict.fromkeys(WHOLE, "Int64"))


def in_words(rows: pd.DataFrame, about: str, figure: Path) -> str:
    """The table as Markdown for GitHub: failed arms first, then for each task a table and a chart."""
    several = rows.dropna(subset="thought_tokens")["method"].nunique() > 1
    labels = rows["method"] + ", " if several else ""
    rows = rows.assign(column=labels + "lookahead " + rows["lookahead"].astype(str))
    parts = ["# Ablations", about]
    failed = rows.loc[rows["state"] == FAILED, "experiment"]
    if len(failed):
        arms = rows.loc[rows["method"] != BASE, "experiment"].nunique()
        parts.append(f"**{len(failed)} of {arms} arms failed:** {', '.join(failed)}.")
    parts.append(f"![Accuracy against thought length]({figure.name})")
    every = rows.dropna(subset="thought_tokens")
    columns, lengths = every["column"].unique(), sorted(every["thought_tokens"].unique())
    for (measure, task), some in rows.dropna(subset="task").groupby(["measure", "task"], sort=True):
        parts.append(f"## {MEASURES[measure]}, {task}")
        plain, grid = some[some["thought_tokens"].isna()], some.dropna(subset="thought_tokens")
        cells = {(row["thought_tokens"], row["column"]): _cell(row) for _, row in grid.iterrows()}
        lines = [["thought tokens", *columns], ["---"] * (1 + len(columns))]
        lines += [[str(length), *(cells.get((length, column), FAILED) for column in columns)] for length in lengths]
        if len(columns):
            parts.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        if len(plain):
            parts.append(" · ".join(f"{row['method']} {_cell(row)}" for _, row in plain.iterrows()))
        if measure == "accuracy" and len(grid):
            parts.append(_chart(grid.sort_values("thought_tokens"), plain, task))
    return "\n\n".join(parts) + "\n"


def _cell(row: pd.Series) -> str:
    return f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _chart(grid: pd.DataFrame, plain: pd.DataFrame, task: str) -> str:
    """A line chart in Mermaid, which GitHub draws in Markdown. Mermaid has no gaps: a line must have every length."""
    lengths = sorted(grid["thought_tokens"].unique())
    lines = {name: list(line["mean"]) for name, line in grid.groupby("column") if len(line) == len(lengths)}
    lines |= {row["method"]: [row["mean"]] * len(lengths) for _, row in plain.iterrows()}
    drawn = "\n".join(f"  line [{', '.join(f'{mean:.3f}' for mean in means)}]" for means in lines.values())
    axis = ", ".join(map(str, lengths))
    chart = f'xychart-beta\n  title "{task}"\n  x-axis "thought tokens" [{axis}]\n  y-axis "accuracy" 0 --> 1\n{drawn}'
    return f"```mermaid\n{chart}\n```\n\nLines, in this order: {'; '.join(lines)}."
