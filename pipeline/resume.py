"""A stage that was killed goes on where it was: its finished rows are kept until its outputs are written.

DVC deletes a stage's outputs before it runs, so the rows are kept beside them, in an ignored folder of the main
checkout whose name stands for everything that could change them: `.resume/STAGE/FINGERPRINT`.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TextIO

from pipeline.errors import UserError

FOLDER = ".resume"
ROWS, LOCK = "rows.jsonl", "lock"
CODE = Path(__file__).parent
LIBRARIES = ("torch", "transformers")  # that a row may depend on, unless a stage names others


class Scratch:
    """Rows of a run that may be killed; ``rows`` are those that runs before it had finished, in their order.

    ``folder`` is for files that rows tell of: what no row tells of may be half-written.
    """

    def __init__(self, path: Path):
        self.folder = path.parent
        self.rows, size = _whole_rows(path)
        self._file = path.open("ab")
        self._file.truncate(size)

    def add(self, rows: Sequence[Mapping]) -> None:
        """Keep these rows, of JSON values: they are on the disk when this returns."""
        self._file.write(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def _whole_rows(path: Path) -> tuple[list[dict], int]:
    """The rows before one that a kill has cut short, and how many bytes they are."""
    rows, size = [], 0
    for line in path.read_bytes().splitlines(keepends=True) if path.exists() else []:
        if not line.endswith(b"\n"):
            break
        rows.append(json.loads(line))
        size += len(line)
    return rows, size


@contextmanager
def unfinished(
    stage: str,
    params: Mapping,
    inputs: Sequence[Path],
    code: Path = CODE,
    libraries: Sequence[str] = LIBRARIES,
) -> Iterator[Scratch]:
    """The scratch of ``stage`` with these ``params`` (JSON values), ``inputs`` (files or folders), ``code`` (a folder)
    and versions of ``libraries``.

    It is removed, with what earlier runs of the stage left, once the block has ended well, so outputs are written
    inside it; a run with anything else changed starts afresh. Raises UserError while another process is at the same
    work: killing `dvc` alone leaves its stage running.
    """
    folder = scratch_folder(stage, params, inputs, code, libraries)
    with _locked(folder):
        scratch = Scratch(folder / ROWS)
        try:
            yield scratch
        except BaseException:
            scratch.close()
            if not _has_work(folder):
                _remove(folder)
            raise
        scratch.close()
        _remove(folder)
        _prune(folder.parent)


def scratch_folder(
    stage: str, params: Mapping, inputs: Sequence[Path], code: Path = CODE, libraries: Sequence[str] = LIBRARIES
) -> Path:
    """Where `unfinished` keeps the work of a stage, for other processes of the same run."""
    return Path(os.environ.get("DVC_ROOT", ".")) / FOLDER / stage / fingerprint(params, inputs, code, libraries)


def _has_work(folder: Path) -> bool:
    """Whether anything was done that another run could go on from."""
    return any(path.name != LOCK and (path.is_dir() or path.stat().st_size) for path in folder.iterdir())


def fingerprint(
    params: Mapping, inputs: Sequence[Path], code: Path = CODE, libraries: Sequence[str] = LIBRARIES
) -> str:
    """A name for everything that could change a row: parameters, bytes of inputs and code, versions of libraries."""
    about = {
        "params": dict(params),
        "inputs": [_digests(path, "*") for path in inputs],
        "code": _digests(code, "*.py"),
        "versions": [version(library) for library in libraries],
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _digests(path: Path, pattern: str) -> dict[str, str]:
    """The digest of a file, or of every file in a folder, by its path from there."""
    digests = {}
    for one in [path] if path.is_file() else path.rglob(pattern):
        if one.is_file():
            with one.open("rb") as file:
                digests[one.relative_to(path).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    try:
        file = _lock(folder)
    except BlockingIOError:
        holder = f"process {(folder / LOCK).read_text()}"
        raise UserError(f"{holder} is at the same work, in {folder}: wait until it has ended, or end it") from None
    with file:
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _lock(folder: Path) -> TextIO:
    """The folder's lock file, locked while it is open. Raises BlockingIOError where another process has it."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / LOCK
        with suppress(FileNotFoundError):  # the process that had it has just removed the folder: once more
            file = path.open("a")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
            except BaseException:
                file.close()
                raise
            file.close()


def _remove(folder: Path) -> None:
    """Remove a folder whose lock this process has; first its name, so that another process may use that at once."""
    gone = folder.with_name(f"{folder.name}.gone")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # another process may be at it too


def _prune(stage: Path) -> None:
    """Remove what runs that nobody goes on with have left, those still at work (parallel experiments) excepted.

    Only a run that has ended well does this: when several were killed together, each still finds its own rows.
    """
    for folder in sorted(stage.iterdir()):
        with suppress(BlockingIOError), _lock(folder):
            _remove(folder)
