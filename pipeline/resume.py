"""A stage that was killed resumes: the rows that it has finished are kept until its outputs are written.

DVC deletes a stage's outputs before it runs, so the rows are kept elsewhere, in an ignored folder of the main checkout
whose name is a fingerprint of everything that could change them: `.resume/STAGE/FINGERPRINT`.
"""

import ast
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
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

import torch

from pipeline.errors import UserError
from pipeline.files import digests, locked, named

log = logging.getLogger(__name__)

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "pipeline/__init__.py"
FOLDER = ".resume"
ROWS, LOCK, GONE = "rows.jsonl", "lock", ".gone"
# libraries that a row may depend on, unless a stage names others; the last two need not be installed
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "bitsandbytes")
KEPT = 7 * 24 * 3600  # seconds for which the rows of another killed or failed run are kept


class KeptRows(Sequence[dict]):
    """Rows of JSON values in a file, one per line, read from the disk on access: each takes 8 bytes of memory.

    ``file`` is open for reading and writing. What follows its last whole row, as a kill leaves it, is cut off.
    """

    def __init__(self, file: BinaryIO):
        self._file, self._ends = file, array("q", [0])
        with suppress(ValueError):  # a power cut may leave zeros where nothing was on the disk, and rows behind them
            for line in file:
                if not (line.endswith(b"\n") and isinstance(json.loads(line), dict)):
                    break
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


class Scratch:
    """The ``rows`` that killed runs have finished, and a ``folder`` for files that rows refer to.

    A file in the folder that no row refers to may be half-written. In a ``copy`` the rows of the file ``path`` are the
    first ones, and what is added ends with the process.
    """

    def __init__(self, path: Path, copy: bool = False):
        self.folder = path.parent
        self._file = TemporaryFile(dir=self.folder) if copy else path.open("a+b")  # noqa: SIM115  (`close` does)
        if copy:
            with path.open("rb") as rows:
                shutil.copyfileobj(rows, self._file)
        self._file.seek(0)
        self.rows = KeptRows(self._file)

    def add(self, rows: Sequence[Mapping]) -> None:
        """Append rows of JSON values; they are on the disk when this returns."""
        self.rows.extend(rows)
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


@contextmanager
def resumable(
    stage: str, params: Mapping, inputs: Sequence[Path], code: Path, libraries: Sequence[str] = LIBRARIES
) -> Iterator[Scratch]:
    """Open the scratch folder of a ``stage``'s run; a run with the same fingerprint gets the same folder and rows.

    When the block succeeds, the folder is removed, with those unused for a week: outputs must be written inside the
    block. Raises UserError while another process does the same work (outside Linux a stage outlives a killed `dvc`), or
    runs this stage on other parameters or inputs in the current folder: it would write the same outputs.
    """
    folder = Path(os.environ.get("DVC_ROOT", ".")) / FOLDER / stage / fingerprint(params, inputs, code, libraries)
    here = folder.with_name(f"{hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:16]}.lock")
    with named(folder), locked(folder / LOCK, f"at the same work, in {folder}"):
        try:
            with locked(here, f"running {stage} in this folder"), closing(Scratch(folder / ROWS)) as scratch:
                if scratch.rows:
                    log.info("going on from %d rows in %s", len(scratch.rows), folder)
                yield scratch
        except BaseException:
            if not any(path.name != LOCK and (path.is_dir() or path.stat().st_size) for path in folder.iterdir()):
                _remove(folder)  # nothing was done that another run could resume from
            raise
        _remove(folder)
        _prune(folder.parent)


def fingerprint(params: Mapping, inputs: Sequence[Path], code: Path, libraries: Sequence[str]) -> str:
    """A digest of everything that could change a row.

    That is ``params`` (JSON values), the bytes of ``inputs`` (files or folders) and of ``code`` (a module's file) with
    all that it imports, the versions of ``libraries``, and the machine, where torch computes.
    """
    machine, versions = None, [None] * len(libraries)
    if "torch" in libraries:  # rounding depends on these
        gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
        machine = {"threads": torch.get_num_threads(), "cpu": torch.backends.cpu.get_cpu_capability(), "gpu": gpu}
    for i, library in enumerate(libraries):
        with suppress(PackageNotFoundError):
            versions[i] = version(library)
    about = {
        "params": dict(params),
        "inputs": [digests(path) for path in inputs],
        "code": {str(path.relative_to(ROOT)): digests(path) for path in closure(code)},
        "versions": versions,
        "machine": machine,
    }
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def _remove(folder: Path) -> None:
    """Remove a folder whose lock this process has. It is renamed first, so that its name is free at once."""
    gone = folder.with_name(f"{folder.name}{GONE}")
    shutil.rmtree(gone, ignore_errors=True)
    folder.rename(gone)
    shutil.rmtree(gone, ignore_errors=True)  # another process may remove it too


def _prune(stage: Path) -> None:
    """Delete scratch folders unused for a week; report the rest."""
    for folder in filter(Path.is_dir, sorted(stage.iterdir())):
        if folder.name.endswith(GONE):
            shutil.rmtree(folder, ignore_errors=True)
            continue
        with suppress(OSError, UserError):  # removed meanwhile, another process's, or another user's
            last_used = max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
            if last_used < time.time() - KEPT:
                with locked(folder / LOCK, "at work"):
                    _remove(folder)
    for lock in stage.glob("*.lock"):  # of killed runs in folders that nobody has used for a week
        with suppress(OSError, UserError):
            if lock.stat().st_mtime < time.time() - KEPT:
                with locked(lock, "at work"):
                    pass
    left = sum(folder.is_dir() for folder in stage.iterdir())
    if left:
        log.info("%d other runs in %s are unfinished: what they have done is kept for a week", left, stage)


def closure(path: Path) -> set[Path]:
    """The file and every project file that running it imports, but not what `pipeline/__init__.py` registers."""
    found, left = set(), [path]
    while left:
        one = left.pop()
        if one in found:
            continue
        found.add(one)
        for node in ast.walk(ast.parse(one.read_text(encoding="utf-8"))) if one != PACKAGE else ():
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = one.parents[node.level - 1].relative_to(ROOT).parts if node.level else ()
                module = ".".join((*above, *filter(None, [node.module])))
                names = [f"{module}.{alias.name}" for alias in node.names]  # an alias may be a module
            for parts in (name.split(".") for name in names if name.startswith("pipeline.") or name == "pipeline"):
                for stem in (ROOT.joinpath(*parts[: i + 1]) for i in range(len(parts))):  # and the packages above it
                    left.extend(file for file in (stem / "__init__.py", stem.with_suffix(".py")) if file.is_file())
    return found
