"""The files behind the page, and what each must hold."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError
from pipeline.report.reading import finite, read_csv, read_parquet, some_rows

ESTIMATE = ("ci_low", "ci_high")
FIGURES = ("seeds", "n", "mean", *ESTIMATE)
COMPARISONS = ("seeds", "n", "difference", *ESTIMATE)
DISCORDANT = ("only_arm", "only_against", "p_value")  # blank for the probability of the right answer
VOTES = ("k", "accuracy", *ESTIMATE, "n")
GROUPS = ("n", "share", "base_loss", "improvement", *ESTIMATE, "helped", "hurt")
DENSITY = ("base_loss", "improvement", "tokens")
EXTREMES = ("rank", "text", "base_loss", "improvement")
EXTREME_TEXTS = ("what", "side", "token", "thought", "excerpt")
TOKENS = ("text", "position", "nll_no_thought", "nll_thought", "weight")
TOKEN_TEXTS = ("token", "thought")
PREDICTIONS = ("index", "prob", "correct")
PREDICTION_TEXTS = ("task", "way", "prompt", "answer", "predicted", "thought")


@dataclass(frozen=True)
class ReportInputs:
    """``passages``: how many texts the token map shows, from the first on."""

    params: Path
    base_model_steps: Path
    train_metrics: Path
    train_steps: Path
    train_heldout: Path
    evaluate_metrics: Path
    predictions: Path
    compare_figures: Path
    compare_comparisons: Path
    cot_metrics: Path
    cot_votes: Path
    perplexity_metrics: Path
    tokens: Path
    deciles: Path
    kinds: Path
    positions: Path
    weights: Path
    density: Path
    extremes: Path
    passages: int


def read_figures(path: Path) -> pd.DataFrame:
    """One row a task, measure and arm: the mean over ``n`` questions and ``seeds`` runs, a share from 0 to 1."""
    return finite(path, read_csv(path, FIGURES, ("task", "measure", "arm")), FIGURES)


def read_comparisons(path: Path) -> pd.DataFrame:
    """One row a comparison: ``difference`` is ``arm`` minus ``against``, shares from 0 to 1."""
    return finite(path, read_csv(path, COMPARISONS + DISCORDANT, ("task", "measure", "arm", "against")), COMPARISONS)


def read_votes(path: Path) -> pd.DataFrame:
    """One row a task, way and k: the accuracy of the majority of k samples."""
    return finite(path, read_csv(path, VOTES, ("task", "way")), VOTES)


def read_groups(path: Path) -> pd.DataFrame:
    """One row a group of held-out tokens; ``base_loss`` and ``improvement`` in nats per token."""
    return finite(path, some_rows(path, read_csv(path, GROUPS, ("group",))), GROUPS)


def read_density(path: Path) -> pd.DataFrame:
    """One row a cell that holds tokens: its centre in nats, and how many."""
    return finite(path, some_rows(path, read_csv(path, DENSITY)), DENSITY)


def read_extremes(path: Path) -> pd.DataFrame:
    """One row a passage or thought, ordered by ``rank``; ``improvement`` in nats, of a passage a mean over tokens."""
    table = finite(path, read_csv(path, EXTREMES, EXTREME_TEXTS), EXTREMES)
    return table.sort_values("rank", kind="stable", ignore_index=True)


def read_tokens(path: Path) -> pd.DataFrame:
    """One row a token, in reading order; losses in nats."""
    table = finite(path, some_rows(path, read_parquet(path, TOKENS, TOKEN_TEXTS)), TOKENS)
    return table.sort_values(["text", "position"], kind="stable", ignore_index=True)


def read_predictions(path: Path, ways: Iterable[str]) -> pd.DataFrame:
    """One row a question and way, each question in all of ``ways``; ``prob``: of the right answer."""
    table = finite(path, some_rows(path, read_parquet(path, PREDICTIONS, PREDICTION_TEXTS)), PREDICTIONS)
    counts = table.groupby(["task", "index", "way"], sort=False).size().unstack(fill_value=0)
    for way in ways:
        found = counts.get(way, pd.Series(0, counts.index))
        for (task, index), count in found[found != 1].items():
            raise UserError(f"{path}: question {index:.0f} of {task} has {count} rows of way {way}, not one")
    return table
