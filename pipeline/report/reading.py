"""Read a file that another stage wrote. UserError names the file where it is missing or cannot be read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import UserError

TEXTS = {
    *("task", "measure", "arm", "against", "way"),
    *("prompt", "answer", "predicted", "token", "thought", "excerpt", "group", "what", "side"),
}


def read_json(path: Path) -> dict[str, Any]:
    return _read(path, lambda path: json.loads(path.read_text(encoding="utf-8")))


def read_csv(path: Path, *columns: str) -> pd.DataFrame:
    """These columns. `TEXTS` are text, even where it reads "NA"; all others are floats, NaN where blank."""
    types = {column: str if column in TEXTS else float for column in columns}
    blank = {column: [""] for column in columns if column not in TEXTS}
    given = {"usecols": list(columns), "dtype": types, "keep_default_na": False, "na_values": blank}
    return _read(path, lambda path: pd.read_csv(path, **given))[list(columns)]


def read_parquet(path: Path, *columns: str) -> pd.DataFrame:
    """These columns; a text is "" where it is missing."""
    table = _read(path, lambda path: pd.read_parquet(path, columns=list(columns)))
    return table.fillna(dict.fromkeys(TEXTS.intersection(columns), ""))


def _read(path: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(path)
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file") from error
    except (OSError, ValueError, RecursionError) as error:  # RecursionError: JSON that is nested too deep
        raise UserError(f"{path}: cannot be read: {error}") from error
