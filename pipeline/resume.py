"""A stage that was killed goes on where it was: its finished rows are kept until its outputs are written.

DVC deletes a stage's outputs before it runs, so the rows are kept beside them, in an ignored folder of the main
checkout whose name stands for everything that could change them: `.resume/STAGE/FINGERPRINT`.
"""

import ast
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO, TextIO

import torch

from pipeline.errors import UserError
from pipeline.files import digests, named

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline/__init__.py"
FOLDER = ".resume"
ROWS, LOCK, GONE = "rows.jsonl", "lock", ".gone"
# that a row may depend on, unless a stage names others; the last two need not be installed
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "bitsandbytes")
KEPT = 7 * 24 * 3600  # seconds: of another run, killed or failed, that may still be run again


class Rows(Sequence[dict]):
    """Rows of JSON values in a file, a line each, read from the disk as they are asked for: in memory are 8 bytes each.

    ``file`` is open for reading and writing. What follows its last whole row, as a kill leaves it, is cut off.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._ends = file, array("q", [0])
        for line in takewhile(_is_row, file):
            self._ends.append(self._ends[-1] + len(line))
        file.truncate(self._ends[-1])

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, number: int) -> dict:
        number = range(len(self))[number]
        self._file.seek(self._ends[number])
        return json.loads(self._file.read(self._ends[number + 1] - self._ends[number]))

    def extend(self, rows: Iterable[Mapping]) -> None:
        self._file.seek(self._ends[-1])
        for row in rows:
            self._ends.append(self._ends[-1] + self._file.write(json.dumps(row).encode() + b"\n"))
        self._file.flush()


def _is_row(line: bytes) -> bool:
    """Whether a row is whole: a power cut may leave zeros, and more behind them, where nothing was on the disk yet."""
    try:
        return isinstance(json.loads(line), dict) and line.endswith(b"\n")
    except ValueError:
        return False


class Scratch:
    """``rows`` that a run which may be killed has finished, those of runs before it first.

    ``folder`` is for files that rows tell of: what no row tells of may be half-written.
    """

    def __init__(self, path: Path):
        self.folder = path.parent
        self._file = path.open("a+b")
        self._file.seek(0)
        self.rows = Rows(self._file)

    def add(self, rows: Sequence[Mapping]) -> None:
        """Keep these rows, of JSON values: they are on the disk when this returns."""
        self.rows.extend(rows)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@contextmanager
def unfinished(
    stage: str,
    params: Mapping,
    inputs: Sequence[Path],
    code: Path,
    libraries: Sequence[str] = LIBRARIES,
) -> Iterator[Scratch]:
    """The scratch of ``stage`` with these ``params`` (JSON values), ``inputs`` (files or folders), ``code`` (a module's
    file, with all that it imports) and versions of ``libraries``.

    It is removed, with what has been left in the stage's folder for a week, once the block has ended well, so outputs
    are written inside it; a run with anything else changed starts afresh. Raises UserError while another process is at
    the same work: killing `dvc` alone leaves its stage running.
    """
    work = fingerprint(params, inputs, code, libraries)
    folder = Path(os.environ.get("DVC_ROOT", ".")) / FOLDER / stage / work
    with named(folder), _locked(folder) as lock:
        try:
            lock.write(str(os.getpid()))
            lock.flush()
            with closing(Scratch(folder / ROWS)) as scratch:
                if scratch.rows:
                    log.info("going on from %d rows in %s", len(scratch.rows), folder)
                yield scratch
        except BaseException:
            if not _has_work(folder):
                _remove(folder)
            raise
        _remove(folder)
        _prune(folder.parent)


def _has_work(folder: Path) -> bool:
    """Whether anything was done that another run could go on from."""
    return any(path.name != LOCK and (path.is_dir() or path.stat().st_size) for path in folder.iterdir())


def fingerprint(params: Mapping, inputs: Sequence[Path], code: Path, libraries: Sequence[str]) -> str:
    """A name for everything that could change a row: parameters, bytes of inputs and code, versions, the machine."""
    about = {
        "params": dict(params),
        "inputs": [digests(path) for path in inputs],
        "code": {str(path.relative_to(ROOT)): digests(path) for path in closure(code)},
        "versions": [_version(library) for library in libraries],
        "machine": _machine() if "torch" in libraries else None,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _machine() -> dict[str, object]:
    """What rounding depends on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "gpu": gpu}


def _version(library: str) -> str | None:
    try:
        return version(library)
    except PackageNotFoundError:
        return None


@contextmanager
def _locked(folder: Path) -> Iterator[TextIO]:
    """The folder's lock file, emptied for the name of this process."""
    try:
        file = _lock(folder)
    except BlockingIOError:
        holder = f"process {(folder / LOCK).read_text()}"
        raise UserError(f"{holder} is at the same work, in {folder}: wait until it has ended, or end it") from None
    with file:
        file.truncate(0)
        yield file


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
    gone = folder.with_name(f"{folder.name}{GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # another process may be at it too


def _prune(stage: Path) -> None:
    """Remove what runs that nobody has gone on with for a week have left, and tell of what is left of others."""
    for folder in filter(Path.is_dir, sorted(stage.iterdir())):
        if folder.name.endswith(GONE):
            shutil.rmtree(folder, ignore_errors=True)
        elif _last_used(folder) < time.time() - KEPT:
            with suppress(OSError), _lock(folder):  # another process's, or another user's
                _remove(folder)
    left = sum(folder.is_dir() for folder in stage.iterdir())
    if left:
        log.info("%d other runs in %s are unfinished: what they have done is kept for a week", left, stage)


def _last_used(folder: Path) -> float:
    """When something in it changed, in seconds since the epoch; now where it has just been removed."""
    try:
        return max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return time.time()


def closure(path: Path) -> set[Path]:
    """The file and every project file that running it imports; what the package itself imports only registers."""
    found, left = set(), [path]
    while left:
        one = left.pop()
        if one not in found:
            found.add(one)
            left.extend(filter(None, map(_file_of, _imported(one) if one != PACKAGE else ())))
    return found


def _imported(path: Path) -> Iterator[str]:
    """Every module of the project that a file names in an import, with the packages above it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = path.parents[node.level - 1].relative_to(ROOT).parts if node.level else ()
            module = ".".join((*above, *filter(None, [node.module])))
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        for name in names:
            parts = str(name).split(".")
            yield from (".".join(parts[: i + 1]) for i in range(len(parts)) if parts[0] == "pipeline")


def _file_of(module: str) -> Path | None:
    stem = ROOT / module.replace(".", "/")
    return next((path for path in (stem / "__init__.py", stem.with_suffix(".py")) if path.is_file()), None)
