"""Reads what the other stages wrote; what is missing or malformed is refused with the file's name."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError

TRAIN_STEPS = (
    "step",
    "loss",
    "base_loss",
    "talk_loss",
    "policy_loss",
    "reward",
    "positive_advantages",
    "mixing_weight",
    "thought_entropy",
)
TRAIN_HELDOUT = ("step", "base_loss", "talk_loss", "working_share")
BASE_MODEL_STEPS = ("step", "loss", "heldout_loss")
DECILES = ("decile", "base_loss", "improvement", "ci_low", "ci_high", "n")
TOKEN_NUMBERS = ("text", "position", "nll_no_thought", "nll_thought", "weight")
TOKEN_TEXTS = ("token", "thought")
PREDICTION_NUMBERS = ("index", "prob_no_thought", "prob_thought", "correct_no_thought", "correct_thought")
PREDICTION_TEXTS = ("task", "prompt", "answer", "thought", "predicted_no_thought", "predicted_thought")


@dataclass(frozen=True)
class ReportInputs:
    """The files behind the page; ``passages``: how many texts the token heat map shows, from the first on."""

    evaluate_metrics: Path
    perplexity_metrics: Path
    train_metrics: Path
    train_steps: Path
    train_heldout: Path
    base_model_steps: Path
    tokens: Path
    predictions: Path
    params: Path
    passages: int


@dataclass(frozen=True)
class Metrics:
    """A metrics file, whose values are asked for by their keys from the outermost in."""

    path: Path
    values: dict[str, Any]

    def at(self, *keys: str) -> Any:
        value = self.values
        for key in keys:
            if not isinstance(value, dict) or key not in value:
                raise UserError(f"{self.path}: no {'.'.join(keys)}")
            value = value[key]
        return value

    def number(self, *keys: str) -> float:
        value = self.at(*keys)
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise UserError(f"{self.path}: {'.'.join(keys)} is not a finite number")
        return value


def read_metrics(path: Path) -> Metrics:
    values = _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return Metrics(path, values)


def read_deciles(metrics: Metrics) -> pd.DataFrame:
    """One row a decile of the base loss (columns ``DECILES``; losses in nats per token)."""
    deciles = metrics.at("deciles")
    if not isinstance(deciles, list) or not all(isinstance(decile, dict) for decile in deciles):
        raise UserError(f"{metrics.path}: deciles is not a list of objects")
    return _finite(metrics.path, _numbers(metrics.path, pd.DataFrame(deciles), DECILES), DECILES)


def read_steps(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    """These columns of a CSV file as numbers, NaN where blank."""
    return _numbers(path, _read(path, pd.read_csv), columns)


def read_tokens(path: Path) -> pd.DataFrame:
    """One row a token, in reading order; losses in nats."""
    table = _finite(path, _read_rows(path, TOKEN_NUMBERS, TOKEN_TEXTS), TOKEN_NUMBERS)
    return table.sort_values(["text", "position"], kind="stable", ignore_index=True)


def read_predictions(path: Path) -> pd.DataFrame:
    """One row a question; ``prob_*`` is the probability of the right answer."""
    return _finite(path, _read_rows(path, PREDICTION_NUMBERS, PREDICTION_TEXTS), PREDICTION_NUMBERS)


def read_params(path: Path) -> str:
    return _read(path, lambda path: path.read_text(encoding="utf-8"))


def _read_rows(path: Path, numbers: Iterable[str], texts: Iterable[str]) -> pd.DataFrame:
    table = _read(path, pd.read_parquet)
    if table.empty:
        raise UserError(f"{path}: no rows")
    return pd.concat([_numbers(path, table, numbers), _texts(path, table, texts)], axis=1)


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _select(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    missing = [column for column in columns if column not in table.columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}")
    return table[list(columns)]


def _numbers(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    selected = _select(path, table, columns)
    numbers = selected.apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = [column for column in selected if (numbers[column].isna() & selected[column].notna()).any()]
    if wrong:
        raise UserError(f"{path}: not numbers in column {', '.join(wrong)}")
    return numbers


def _finite(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    wrong = [column for column in columns if not table[column].map(math.isfinite).all()]
    if wrong:
        raise UserError(f"{path}: blank or infinite values in column {', '.join(wrong)}")
    return table


def _texts(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    selected = _select(path, table, columns)
    return selected.astype(object).where(selected.notna(), "").astype(str)
