"""Reads a file that another stage wrote; what is missing or malformed is refused with the file's name."""

import json
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError


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

    def names(self, *keys: str) -> list[str]:
        """The keys of an object inside, in their order."""
        value = self.at(*keys)
        if not isinstance(value, dict):
            raise UserError(f"{self.path}: {'.'.join(keys)} is not an object")
        return list(value)


def read_metrics(path: Path) -> Metrics:
    values = _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object")
    return Metrics(path, values)


def read_text(path: Path) -> str:
    return _read(path, lambda path: path.read_text(encoding="utf-8"))


def read_csv(path: Path, numbers: Iterable[str], texts: Iterable[str] = ()) -> pd.DataFrame:
    """These columns of a CSV file; numbers are NaN where blank, and a text that reads "NA" stays that text."""
    table = _read(path, lambda path: pd.read_csv(path, dtype=str, keep_default_na=False))
    return _columns(path, table.where(table != ""), numbers, texts)


def read_parquet(path: Path, numbers: Iterable[str], texts: Iterable[str]) -> pd.DataFrame:
    return _columns(path, _read(path, pd.read_parquet), numbers, texts)


def finite(path: Path, table: pd.DataFrame, columns: Iterable[str]) -> pd.DataFrame:
    """``table``, or UserError where a value of these columns is blank or infinite."""
    wrong = [column for column in columns if not table[column].map(math.isfinite).all()]
    if wrong:
        raise UserError(f"{path}: blank or infinite values in column {', '.join(wrong)}")
    return table


def some_rows(path: Path, table: pd.DataFrame) -> pd.DataFrame:
    if table.empty:
        raise UserError(f"{path}: no rows")
    return table


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: JSON that is nested too deep
        raise UserError(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _columns(path: Path, table: pd.DataFrame, numbers: Iterable[str], texts: Iterable[str]) -> pd.DataFrame:
    missing = [column for column in [*numbers, *texts] if column not in table.columns]
    if missing:
        raise UserError(f"{path}: no column {', '.join(missing)}")
    return pd.concat([_numbers(path, table[list(numbers)]), _texts(table[list(texts)])], axis=1)


def _numbers(path: Path, given: pd.DataFrame) -> pd.DataFrame:
    numbers = given.apply(pd.to_numeric, errors="coerce").astype(float)
    wrong = [column for column in given if (numbers[column].isna() & given[column].notna()).any()]
    if wrong:
        raise UserError(f"{path}: not numbers in column {', '.join(wrong)}")
    return numbers


def _texts(given: pd.DataFrame) -> pd.DataFrame:
    return given.astype(object).where(given.notna(), "").astype(str)
