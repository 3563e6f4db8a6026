"""Writing outputs so that what is there is whole: nothing half-written is left behind."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from mmap import ACCESS_READ, mmap
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import UserError

BATCH_ROWS = 2000
ARROW = ".arrow"
RUST_OS_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers tell of a full disk in their text alone


@contextmanager
def new_path(path: Path) -> Iterator[Path]:
    """A path beside ``path`` to write a file or a folder to; takes its place when the block ends without an error.

    It is on the disk by then, so that not even a power cut leaves half of it.
    """
    part = path.with_name(f"{path.name}.part")
    _remove(part)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with named(path):
            yield part
            sync(part)
            _remove(path)
            part.rename(path)
            sync(path.parent, inside=False)
    finally:
        _remove(part)


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Raise the system's errors (a full disk) in the block as OSError that names ``path`` where they name no file."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        number = _system_error(error)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(path)) from error


def _system_error(error: Exception) -> int | None:
    """The number of a system's error that does not name its file."""
    if isinstance(error, OSError):
        return error.errno if error.filename is None else None
    found = RUST_OS_ERROR.search(str(error))
    return int(found[1]) if found else None


def sync(path: Path, inside: bool = True) -> None:
    """Wait until a file, or a folder and all that is ``inside``, is on the disk."""
    for one in [path, *(path.rglob("*") if inside else [])]:
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
    """Indented JSON; a number that is not finite is an error, as no reader could use it."""
    with new_path(path) as part:
        part.write_text(json.dumps(values, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def write_table(path: Path, table: pd.DataFrame) -> None:
    """A table as CSV or Parquet, by the path's ending; floats in CSV have seven digits."""
    with new_path(path) as part:
        if path.suffix == ".csv":
            table.to_csv(part, index=False, float_format="%.7g", lineterminator="\n")
        else:
            table.to_parquet(part, index=False)


def write_rows(path: Path, rows: Iterable[dict], schema: pa.Schema) -> int:
    """Rows as Parquet or Arrow, a batch at a time, so that they never are in memory at once. Returns their number."""
    tables = (pa.Table.from_pylist(batch, schema) for batch in batches(rows, BATCH_ROWS))
    return write_tables(path, tables, schema)


def write_tables(path: Path, tables: Iterable[pa.Table], schema: pa.Schema) -> int:
    """Tables one after the other, as Parquet or, by the path's ending, as an Arrow stream. Returns how many rows."""
    count = 0
    open_writer = pa.ipc.new_stream if path.suffix == ARROW else pq.ParquetWriter
    with new_path(path) as part, open_writer(part, schema) as writer:
        for table in tables:
            writer.write_table(table)
            count += len(table)
    return count


def arrow_table(path: Path) -> pa.Table:
    """The rows of an Arrow stream, left on the disk until they are used. Raises UserError for a file that is none.

    Mapped by Python, as `pa.memory_map` has the system read all of it ahead: a minute for 40 GB.
    """
    try:
        with path.open("rb") as file:
            mapped = pa.py_buffer(mmap(file.fileno(), 0, access=ACCESS_READ))
        return pa.ipc.open_stream(mapped).read_all()
    except (OSError, ValueError, pa.ArrowException) as error:  # ValueError: an empty file cannot be mapped
        raise UserError(f"{path} is missing or not an Arrow file: run `dvc repro` to make it again") from error


def looks_local(path: str) -> bool:
    """Whether a path can only mean a folder: hub names have one slash at most and no leading dot, slash or tilde."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def check_model_folder(path: Path | str) -> None:
    """Raise UserError where there is no such folder, and the path can be no model's name in the hub."""
    if looks_local(str(path)) and not Path(path).expanduser().is_dir():
        raise UserError(f"there is no model at {path}: the folder does not exist")


def checked_table(path: Path, schema: pa.Schema) -> pa.Table:
    """The same, where the columns are those of ``schema`` and no value is missing; UserError also where not."""
    table = arrow_table(path)
    if table.schema != schema or any(column.null_count for column in table.columns):
        columns = ", ".join(f"{field.name}: {field.type}" for field in schema)
        raise UserError(f"{path} does not hold the columns {columns}: run `dvc repro` to make it again")
    return table


def digests(path: Path, pattern: str = "*") -> dict[str, str]:
    """The SHA-256 digest of a file, or of every file in a folder whose name matches, by its path from there."""
    found = {}
    for one in [path] if path.is_file() else path.rglob(pattern):
        if one.is_file():
            with one.open("rb") as file:
                found[one.relative_to(path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def read_rows(path: Path) -> Iterator[dict]:
    """The rows of a Parquet file, a batch at a time. Raises UserError where it is missing or broken."""
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{path} is missing or not a Parquet file: run `dvc repro` to make it again") from error


def batches(rows: Iterable, size: int) -> Iterator[list]:
    """Lists of ``size`` successive rows, the last one shorter."""
    batch = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
