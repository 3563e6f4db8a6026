"""Rows of a data set from the hub, or from a local folder in the hub's layout.

Data sets are streamed: only what is used is downloaded, and a corpus may be larger than memory.
"""

import logging
import random
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

from datasets import IterableDataset, load_dataset

from pipeline.errors import UserError, reason
from pipeline.files import files_below, looks_local
from pipeline.params import HubSplit

BLOCK = 10_000  # rows that are shuffled together; also the most that a run reads again after a kill
START = {"rows": 0, "stream": None}  # the state of `blocks` before the first one
# it warns that resuming loses the rows in a shuffle buffer: the buffer used here holds none
logging.getLogger("datasets.iterable_dataset").setLevel(logging.ERROR)


def rows(source: HubSplit) -> Iterator[dict]:
    """Read every row, in order. Raises UserError where the data set cannot be read or is empty."""
    row = None
    with _told_as_user_error(source):
        for row in _open(source):
            yield row
    if row is None:
        raise UserError(f"{describe(source)} is empty")


def blocks(source: HubSplit, seed: int, state: dict = START) -> Iterator[tuple[list[str], dict]]:
    """Read a text split, a block of rows at a time: its documents, without blank ones, and a state (JSON values).

    Only rows of ``source.part`` count. With ``source.rows``, that many of them are chosen by ``seed``: files come in a
    random order, ten at a time, and each block of ``BLOCK`` rows is shuffled; the last block is cut to fit. Without,
    all rows come in order. With the ``state`` of an earlier block, reading resumes behind it and gives the same blocks.
    Raises UserError where a row cannot be read or has no text (`document`).
    """
    taken = state["rows"]
    with _told_as_user_error(source):
        stream = _open(source)
        if source.rows is not None:
            stream = stream.shuffle(seed=seed, buffer_size=1)  # files only: a larger buffer's rows cannot be resumed
        if state["stream"] is not None:
            stream.load_state_dict(state["stream"])
        documents = (document(row, source) for row in stream if in_part(row, source))
        while (source.rows is None or taken < source.rows) and (block := list(islice(documents, BLOCK))):
            if source.rows is not None:
                random.Random(f"{seed}/{taken}").shuffle(block)
                block = block[: source.rows - taken]
            taken += len(block)
            yield [text for text in block if text.strip()], {"rows": taken, "stream": stream.state_dict()}


def in_part(row: dict, source: HubSplit) -> bool:
    """Whether a row is in ``source.part``: by a hash of a column, whatever the order of rows. Raises UserError."""
    if source.in_part is None:
        return True
    column, part, parts = source.in_part
    if column not in row:
        raise UserError(f"{describe(source)} has no column {column!r}; its columns are {', '.join(row)}")
    return zlib.crc32(str(row[column]).encode()) % parts == part - 1


def document(row: dict, source: HubSplit) -> str:
    """The text of a row: its column ``source.columns`` ("text"), or "Q: ...\\nA: ..." of two (``question+answer``).

    Of an answer in GSM8K's form, ``source.solution`` may leave the final number, after the equations between dashes or
    alone. Raises UserError where there is no such column, or its value is not text or not of that form.
    """
    names = (source.columns or "text").split("+")
    for name in names:
        if name not in row:
            raise UserError(f"{describe(source)} has no column {name!r}; its columns are {', '.join(row)}")
        if not isinstance(row[name], str):
            raise UserError(f"{describe(source)}: column {name} is not text")
    if len(names) == 1:
        return row[names[0]]
    question, answer = (row[name] for name in names)
    if source.solution is not None:
        answer, mark, final = answer.rpartition("####")
        final = final.strip()
        if not (mark and final):
            raise UserError(
                f"{describe(source)}: solution is {source.solution}, but an answer has no number after ####"
            )
        equations = " ".join(re.findall("<<(.+?)>>", answer)) if source.solution == "equations" else ""
        answer = f"— {equations} — {final}" if equations else final
    return f"Q: {question}\nA: {answer}"


def describe(source: HubSplit) -> str:
    name = f", {source.name}" if source.name else ""
    part = f", part {source.part}" if source.part else ""
    return f"data set {source.path}{name}, split {source.split}{part}"


def _open(source: HubSplit) -> IterableDataset:
    path = source.path
    if looks_local(path):
        folder = Path(path).expanduser()
        if not folder.exists():
            raise UserError(f"the folder {path} does not exist: name a hub data set or a folder in the hub's layout")
        for file in files_below(folder):  # `datasets` would silently leave out what a broken link stands for
            if not file.exists():
                raise UserError(f"{file} is a link to a file that does not exist: download the data set again")
        path = str(folder)
    return load_dataset(path, source.name, split=source.split, revision=source.revision, streaming=True)


@contextmanager
def _told_as_user_error(source: HubSplit) -> Iterator[None]:
    """Raise any exception in the block as a UserError: every reader behind `datasets` raises its own."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        no_rows = "BatchSize must be greater than 0" in str(error)  # pyarrow's message for a Parquet file without rows
        problem = "has a Parquet file without rows: leave it out" if no_rows else f"cannot be read: {reason(error)}"
        raise UserError(f"{describe(source)} {problem}") from error
