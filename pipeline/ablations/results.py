"""The arms' figures as one table, and in words."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from pipeline.ablations import experiments
from pipeline.ablations.grid import Arm

FIGURES = "results/compare/figures.csv"
BASE = "base"
MEASURES = {"accuracy": "Accuracy", "prob": "Probability of the right answer"}
COLUMNS = ["experiment", "state", "method", "thought_tokens", "lookahead", "task", "measure", "seeds", "n", "mean"]
COLUMNS += ["ci_low", "ci_high"]


def table(arms: Sequence[Arm], states: Mapping[str, str]) -> pd.DataFrame:
    """A row an arm, task and measure, of the base model too; of an arm that failed one row, without figures."""
    rows = []
    for arm in arms:
        about = {"experiment": arm.name, "state": states[arm.name], "method": arm.method}
        about |= {"thought_tokens": arm.thought_tokens, "lookahead": arm.lookahead}
        if states[arm.name] == experiments.DONE:
            figures = pd.read_csv(io.StringIO(experiments.read(arm, FIGURES)))
            own, base = figures[figures["arm"] == arm.method], figures[figures["arm"] == BASE]
            rows += [about | row for row in own.to_dict("records")]
            if not any(row["method"] == BASE for row in rows):  # it is the same in every arm
                plain = {"experiment": "", "method": BASE, "thought_tokens": None, "lookahead": None}
                rows += [about | plain | row for row in base.to_dict("records")]
        else:
            rows.append(about)
    found = pd.DataFrame(rows).reindex(columns=COLUMNS)
    return found.astype({"thought_tokens": "Int64", "lookahead": "Int64", "seeds": "Int64", "n": "Int64"})


def in_words(rows: pd.DataFrame, about: str, figure: Path) -> str:
    """The table as Markdown that GitHub shows: what failed first, then a table and a chart of each task."""
    rows = rows.assign(column=_columns(rows))
    parts = ["# Ablations", about, *_failures(rows), f"![Accuracy against thought length]({figure.name})"]
    for (measure, task), some in rows.dropna(subset="task").groupby(["measure", "task"], sort=True):
        parts += [f"## {MEASURES[measure]}, {task}", _grid(some, rows), *_others(some)]
        if measure == "accuracy":
            parts.append(_chart(some, task))
    return "\n\n".join(filter(None, parts)) + "\n"


def _failures(rows: pd.DataFrame) -> list[str]:
    failed = rows[rows["state"] == experiments.FAILED]
    if failed.empty:
        return []
    arms = rows.loc[rows["method"] != BASE, "experiment"].nunique()
    return [f"**{len(failed)} of {arms} arms failed:** {', '.join(failed['experiment'])}."]


def _grid(some: pd.DataFrame, rows: pd.DataFrame) -> str:
    """Thought lengths down, methods and lookaheads across: also those of which every arm failed."""
    every, grid = rows.dropna(subset="thought_tokens"), some.dropna(subset="thought_tokens")
    cells = {(row["thought_tokens"], row["column"]): _cell(row) for _, row in grid.iterrows()}
    columns = list(dict.fromkeys(every["column"]))
    lines = [["thought tokens", *columns], ["---"] * (1 + len(columns))]
    for length in sorted(every["thought_tokens"].unique()):
        lines.append([str(length), *(cells.get((length, column), "failed") for column in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) if columns else ""


def _columns(rows: pd.DataFrame) -> list[str]:
    """The column that each row is in, by its lookahead and, where there are several methods with one, its method."""
    several = rows.dropna(subset="thought_tokens")["method"].nunique() > 1
    pairs = zip(rows["method"], rows["lookahead"], strict=True)
    return [f"{method + ', ' if several else ''}lookahead {lookahead}" for method, lookahead in pairs]


def _others(some: pd.DataFrame) -> list[str]:
    plain = some[some["thought_tokens"].isna()]
    return [" · ".join(f"{row['method']} {_cell(row)}" for _, row in plain.iterrows())] if len(plain) else []


def _cell(row: pd.Series) -> str:
    return f"{row['mean']:.3f} [{row['ci_low']:.3f}, {row['ci_high']:.3f}]"


def _chart(some: pd.DataFrame, task: str) -> str:
    """A line chart in Mermaid, which GitHub draws wherever it shows Markdown; a line needs every point."""
    grid = some.dropna(subset="thought_tokens").sort_values("thought_tokens")
    lengths = sorted(grid["thought_tokens"].unique())
    lines = {}
    for name, line in grid.groupby("column"):
        if list(line["thought_tokens"]) == lengths:
            lines[name] = list(line["mean"])
    lines |= {row["method"]: [row["mean"]] * len(lengths) for _, row in some[some["thought_tokens"].isna()].iterrows()}
    if not lengths:
        return ""
    drawn = "\n".join(f"  line [{', '.join(f'{mean:.3f}' for mean in means)}]" for means in lines.values())
    axis = ", ".join(map(str, lengths))
    chart = f'xychart-beta\n  title "{task}"\n  x-axis "thought tokens" [{axis}]\n  y-axis "accuracy" 0 --> 1\n{drawn}'
    return f"```mermaid\n{chart}\n```\n\nLines, in this order: {'; '.join(lines)}."
