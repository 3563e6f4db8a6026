"""Rows of a data set by its hub name, or from a local folder in the hub's layout."""

from collections.abc import Iterator
from pathlib import Path

from datasets import load_dataset

from pipeline.errors import UserError
from pipeline.params import HubSplit

SHUFFLE_BUFFER = 10_000  # rows among which a streamed data set is shuffled
DEFAULT_COLUMNS = "text"


def texts(source: HubSplit, seed: int) -> Iterator[str]:
    """The documents of a text split; blank ones are left out. Raises UserError where nothing is left.

    ``source.columns`` names the column with the text, or two, ``question+answer``, which make "Q: ...\\nA: ...".
    """
    columns = (source.columns or DEFAULT_COLUMNS).split("+")
    found = False
    for row in rows(source, columns, seed):
        document = _document([row[name] for name in columns], source)
        if document.strip():
            found = True
            yield document
    if not found:
        raise UserError(f"{describe(source)} has no text")


def _document(values: list[object], source: HubSplit) -> str:
    if not all(isinstance(value, str) for value in values):
        raise UserError(f"{describe(source)}: column {source.columns or DEFAULT_COLUMNS} is not text")
    return values[0] if len(values) == 1 else "Q: {}\nA: {}".format(*values)


def rows(source: HubSplit, columns: list[str], seed: int) -> Iterator[dict]:
    """``source.rows`` rows chosen by ``seed``, or all of them in order. Raises UserError for what cannot be read.

    Data sets are streamed: only what is taken is downloaded, and a corpus may be larger than memory.
    """
    if looks_local(source.path) and not Path(source.path).exists():
        raise UserError(f"the folder {source.path} does not exist: name a hub data set or a folder in the hub's layout")
    count = 0
    for row in _stream(source, seed):
        absent = [name for name in columns if name not in row]
        if absent:
            raise UserError(f"{describe(source)} has no column {absent[0]!r}; its columns are {', '.join(row)}")
        count += 1
        yield row
    if not count:
        raise UserError(f"{describe(source)} is empty")


def _stream(source: HubSplit, seed: int) -> Iterator[dict]:
    try:
        data = load_dataset(source.path, source.name, split=source.split, revision=source.revision, streaming=True)
        if source.rows is not None:
            data = data.shuffle(seed=seed, buffer_size=SHUFFLE_BUFFER).take(source.rows)
        yield from data
    except Exception as error:  # every reader behind `datasets` has exceptions of its own
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{describe(source)} cannot be read: {reason}") from error


def looks_local(path: str) -> bool:
    """Whether a path can only mean a folder: hub names have one slash at most and no leading dot, slash or tilde."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def describe(source: HubSplit) -> str:
    name = f", {source.name}" if source.name else ""
    return f"data set {source.path}{name}, split {source.split}"
