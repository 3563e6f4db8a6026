"""Rows of a data set by its hub name, or from a local folder in the hub's layout.

Data sets are streamed: only what is taken is downloaded, and a corpus may be larger than memory.
"""

import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from datasets import IterableDataset, load_dataset

from pipeline.errors import UserError, reason
from pipeline.files import looks_local
from pipeline.params import HubSplit

BLOCK = 10_000  # rows among which some are chosen, and which a run that is killed has to read again at most
DEFAULT_COLUMNS = "text"
# it warns that a shuffle buffer's rows are lost where a stream goes on: the one used here holds none
logging.getLogger("datasets.iterable_dataset").setLevel(logging.ERROR)


@dataclass(frozen=True)
class Block:
    """Documents of one stretch of a text split, and where reading goes on behind it (JSON values)."""

    texts: list[str]
    state: dict


def rows(source: HubSplit, columns: Sequence[str] = ()) -> Iterator[dict]:
    """Every row, in order. Raises UserError for what cannot be read, or has not these ``columns``."""
    yield from _checked(_read(_open(source), source), source, columns)


def blocks(source: HubSplit, seed: int, state: dict | None = None) -> Iterator[Block]:
    """The documents of a text split, a stretch at a time; blank ones are left out.

    With ``source.rows``, so many rows chosen by ``seed``: files in a random order, ten at a time, their rows in
    stretches of ``BLOCK``, each in a random order, of the last of which the first ones; without, all rows in order.
    ``state``, of a block before, goes on behind it, with the same blocks as if nothing had come between.
    ``source.columns`` names the column with the text, or two, ``question+answer``, which make "Q: ...\\nA: ...".
    Raises UserError as `rows` does.
    """
    columns = columns_of(source)
    taken = state["rows"] if state else 0
    if source.rows is not None and taken >= source.rows:
        return
    stream = _open(source, None if source.rows is None else seed, state and state["stream"])
    found = _checked(_read(stream, source), source, columns, empty=state is None)
    values = ([row[name] for name in columns] for row in found)
    while (source.rows is None or taken < source.rows) and (stretch := list(islice(values, BLOCK))):
        if source.rows is not None:
            random.Random(f"{seed}/{taken}").shuffle(stretch)
            stretch = stretch[: source.rows - taken]
        taken += len(stretch)
        texts = [text for text in (_document(row, source) for row in stretch) if text.strip()]
        yield Block(texts, {"rows": taken, "stream": stream.state_dict()})


def columns_of(source: HubSplit) -> list[str]:
    return (source.columns or DEFAULT_COLUMNS).split("+")


def check(source: HubSplit) -> None:
    """Raise UserError where the first row cannot be read or is no text."""
    columns = columns_of(source)
    row = next(rows(source, columns))
    _document([row[name] for name in columns], source)


def _open(source: HubSplit, seed: int | None = None, state: dict | None = None) -> IterableDataset:
    path = str(_local(source.path)) if looks_local(source.path) else source.path
    try:
        data = load_dataset(path, source.name, split=source.split, revision=source.revision, streaming=True)
    except Exception as error:
        raise _unreadable(source, error) from error
    if seed is not None:
        data = data.shuffle(seed=seed, buffer_size=1)  # the files only: where a larger buffer stands cannot be kept
    if state is not None:
        data.load_state_dict(state)
    return data


def _local(path: str) -> Path:
    """The folder. Raises UserError where there is none, or where a file of it is no more than a link."""
    folder = Path(path).expanduser()
    if not folder.exists():
        raise UserError(f"the folder {path} does not exist: name a hub data set or a folder in the hub's layout")
    for file in folder.rglob("*"):  # `datasets` would leave it out
        if file.is_symlink() and not file.exists():
            raise UserError(f"{file} is a link to a file that does not exist: download the data set again")
    return folder


def _read(data: IterableDataset, source: HubSplit) -> Iterator[dict]:
    try:
        yield from data
    except Exception as error:
        raise _unreadable(source, error) from error


def _unreadable(source: HubSplit, error: Exception) -> UserError:
    """Of any exception: every reader behind `datasets` has some of its own."""
    if "BatchSize must be greater than 0" in str(error):  # what pyarrow says of a Parquet file without rows
        return UserError(f"{describe(source)} has a Parquet file without rows: leave it out")
    return UserError(f"{describe(source)} cannot be read: {reason(error)}")


def _checked(found: Iterator[dict], source: HubSplit, columns: Sequence[str], empty: bool = True) -> Iterator[dict]:
    for row in found:
        absent = [name for name in columns if name not in row]
        if absent:
            raise UserError(f"{describe(source)} has no column {absent[0]!r}; its columns are {', '.join(row)}")
        empty = False
        yield row
    if empty:
        raise UserError(f"{describe(source)} is empty")


def _document(values: list[object], source: HubSplit) -> str:
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{describe(source)}: column {source.columns or DEFAULT_COLUMNS} is not text")
    return values[0] if len(values) == 1 else "Q: {}\nA: {}".format(*values)


def describe(source: HubSplit) -> str:
    name = f", {source.name}" if source.name else ""
    return f"data set {source.path}{name}, split {source.split}"
