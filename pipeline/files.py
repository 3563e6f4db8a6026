"""Reading and writing files. An output is whole or absent: nothing half-written is left behind."""

import fcntl
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from itertools import islice
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import TextIO

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

BATCH_ROWS = 2000
ARROW = ".arrow"
RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # how safetensors and tokenizers tell of a full disk


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; if the block succeeds, flush it to disk and rename it to ``path``.

    Both take files and folders. Not even a power cut leaves half of an output at ``path``; a file is there at every
    moment, the old or the new one, as tables of hours of work are written again and again. Raises UserError while
    another process is writing it, as two would write into one part.
    """
    part = path.with_name(f"{path.name}.part")
    with named(path), locked(path.with_name(f"{part.name}.lock"), f"writing {path}"):
        _remove(part)  # of a process that was killed
        try:
            yield part
            sync(part)
            if path.is_dir() or part.is_dir():
                _remove(path)
            part.replace(path)
            sync(path.parent, inside=False)
        finally:
            _remove(part)


@contextmanager
def locked(path: Path, work: str) -> Iterator[None]:
    """Hold a lock: a file ``path`` with this process's number, which is removed at the end and may outlive a kill.

    Raises UserError if another process holds it, which then is ``work``.
    """
    with _lock(path, work) as file:
        try:
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield
        finally:
            with suppress(FileNotFoundError):  # the lock may have gone with its folder, and another have its name
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    path.unlink()


def _lock(path: Path, work: str) -> TextIO:
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        # try again if the process that had the lock removes it just now
        with suppress(FileNotFoundError), ExitStack() as opened:
            file = opened.enter_context(path.open("a", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = f"process {path.read_text(encoding='utf-8')}"
                raise UserError(f"{holder} is {work}: wait until it ends, or end it") from None
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                opened.pop_all()
                return file


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Turn errors of the system (a full disk) that name no file into OSErrors that name ``path``."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = None
        if isinstance(error, OSError):
            number = error.errno if error.filename is None else None
        elif found := RUST_OS_ERROR.search(str(error)):
            number = int(found[1])
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def sync(path: Path, inside: bool = True) -> None:
    """Wait until a file, or a folder and everything ``inside``, is on the disk."""
    for one in (path, *(path.rglob("*") if inside else ())):
        file = os.open(one, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, values: dict) -> None:
    """Write indented JSON. Raises ValueError for a number that is not finite, as other readers could not read it."""
    with replacing(path) as part:
        part.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """Write a table as CSV (floats with seven digits) or Parquet, by the path's suffix."""
    with replacing(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part, index=False, float_format="%.7g", lineterminator="\n")
        else:
            table.to_parquet(part, index=False)


def write_rows(path: Path, rows: Iterable[dict], schema: pa.Schema) -> int:
    """Write rows as `write_tables` does, holding one batch in memory at a time. Returns their number."""
    return write_tables(path, (pa.Table.from_pylist(batch, schema) for batch in batches(rows, BATCH_ROWS)), schema)


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Write tables one after the other, as an Arrow stream or Parquet, by the suffix. Returns the number of rows."""
    count = 0
    open_writer = pa.ipc.new_stream if path.suffix == ARROW else pq.ParquetWriter
    with replacing(path) as part, open_writer(part, schema) as writer:
        for table in tables:
            writer.write_table(table)
            count += len(table)
    return count


def read_rows(path: Path) -> Iterator[dict]:
    """Read a Parquet file row by row, holding one batch in memory. Raises UserError if it is missing or broken."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is missing or not a Parquet file: run `dvc repro` to make it again") from error


def arrow_table(path: Path) -> pa.Table:
    """The rows of an Arrow stream, left on the disk until they are used. Raises UserError if it is missing or broken.

    Python maps the file, as `pa.memory_map` makes the system read all of it ahead: a minute for 40 GB.
    """
    try:
        with path.open("rb") as file:
            mapped = pa.py_buffer(mmap(file.fileno(), 0, access=ACCESS_READ))
        return pa.ipc.open_stream(mapped).read_all()
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: an empty file cannot be mapped
        raise UserError(f"{path} is missing or not an Arrow file: run `dvc repro` to make it again") from error


def checked_table(path: Path, schema: pa.Schema) -> pa.Table:
    """Like `arrow_table`. Also raises UserError if its columns are not those of ``schema`` or a value is missing."""
    table = arrow_table(path)
    if table.schema != schema or any(column.null_count for column in table.columns):
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise UserError(f"{path} does not hold the columns {columns}: run `dvc repro` to make it again")
    return table


def looks_local(path: str) -> bool:
    """Whether a path can only be a folder: a hub name has at most one slash and begins with no dot, slash or tilde."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def check_model_folder(path: Path | str) -> None:
    """Raise UserError if there is no folder ``path`` and it cannot be the name of a model in the hub either."""
    if looks_local(str(path)) and not Path(path).is_dir():
        raise UserError(f"there is no model at {path}: the folder does not exist")


def files_below(folder: Path) -> list[Path]:
    """All files below a folder, and links to nothing, in order.

    A link to a folder is followed, as `datasets` does and `rglob` does not, unless it leads to a folder that holds it.
    """
    found = []
    for at, inner, names in os.walk(folder, followlinks=True):
        inner[:] = [name for name in inner if not Path(at).resolve().is_relative_to(Path(at, name).resolve())]
        found += (Path(at, name) for name in names)
    return sorted(found)


def digests(path: Path, pattern: str = "*") -> dict[str, str]:
    """SHA-256 digests by relative path: of a file, or of every file in a folder whose name matches ``pattern``."""
    found = {}
    inside = (file for file in files_below(path) if file.is_file() and file.match(pattern))
    for one in [path] if path.is_file() else inside:
        now = one.stat()
        version = now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns, now.st_ctime_ns
        found[one.relative_to(path).as_posix()] = _digest(one, version)
    return found


@cache
def _digest(path: Path, version: tuple[int, ...]) -> str:
    """A file's digest. What is written or replaced has another ``version``, so this process reads no bytes twice."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def batches(rows: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` successive rows; the last one may be shorter."""
    rows = iter(rows)
    while batch := list(islice(rows, size)):
        yield batch
