"""Kills a run of the pipeline at a random moment: in which way, and what is then left of it on the disk."""

import os
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from pipeline.resume import FOLDER, LOCK, ROWS
from pipeline.training.checkpoints import HALF, last_checkpoint

# which processes are killed: all of a run, DVC alone, the stage alone; power: all, and then `spoil`
GROUP, DVC, STAGE, POWER = WAYS = ("group", "dvc", "stage", "power")
PATIENCE = 20  # seconds for the other processes to end by themselves
NOTHING, NO_STAGE = "nothing", "DVC, between stages"
TORN = b'"correct": true}\n'  # the end of a row whose beginning a power cut has left as zeros


@dataclass(frozen=True)
class Kill:
    """``stage`` was ``seconds`` old; ``left`` is what it can go on from.

    ``orphans`` counts the processes that neither were killed nor ended by themselves.
    """

    stage: str
    seconds: float
    way: str
    left: str
    orphans: int


def _environment() -> dict[str, str]:
    """In which `dvc` and `python` are those of this Python."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def begin(project: Path, log: Path) -> subprocess.Popen:
    """`dvc repro`, started in a process group of its own; what it prints goes to ``log``."""
    with log.open("wb") as file:
        return subprocess.Popen(
            ["dvc", "repro"],
            cwd=project,
            env=_environment(),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            process_group=0,
        )


def called(folder: Path, *words: str) -> str:
    """What a command prints that is run in ``folder``."""
    return subprocess.run(words, cwd=folder, env=_environment(), check=True, capture_output=True, text=True).stdout


def running(dvc: subprocess.Popen) -> tuple[str, float]:
    """The stage that runs at present, as DVC names it, and how many seconds it has run."""
    for process in _family(dvc):
        try:
            name, began = process.environ().get("DVC_STAGE"), process.create_time()
        except psutil.Error:  # it has just ended
            continue
        if name:
            return name, time.time() - began
    return NO_STAGE, 0.0


def kill(project: Path, dvc: subprocess.Popen, random: Random, longest: float) -> Kill | None:
    """Kill a run in one of `WAYS`, at most ``longest`` seconds from now. None where it has ended before."""
    wait, way = random.uniform(0, longest), random.choice(WAYS)
    damage = Random(random.random())  # one of its own: moments go by the seed, whatever there was to spoil
    try:
        dvc.wait(wait)
        return None
    except subprocess.TimeoutExpired:
        family, (stage, seconds) = _family(dvc), running(dvc)
    way = DVC if stage == NO_STAGE else way
    if way != STAGE:
        dvc.kill()
    if way != DVC:
        _kill(family)
    orphans = _end(dvc, family)
    found = left(project)
    if way == POWER:
        spoil(project, damage)
    return Kill(stage, seconds, way, found, orphans)


def _family(dvc: subprocess.Popen) -> list[psutil.Process]:
    try:
        return psutil.Process(dvc.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def _end(dvc: subprocess.Popen, family: list[psutil.Process]) -> int:
    """Wait for all processes to end. Returns how many did not by themselves."""
    _, alive = psutil.wait_procs([psutil.Process(dvc.pid), *family], timeout=PATIENCE)
    _kill(alive)
    dvc.wait()
    return len(alive)


def left(project: Path) -> str:
    """What a stage that was killed can go on from: its last checkpoint, or its rows."""
    for lock in (project / FOLDER).rglob(LOCK):
        checkpoint = last_checkpoint(lock.parent)
        if checkpoint is not None:
            return checkpoint.name.replace("-", " ")
        rows = lock.with_name(ROWS)
        count = rows.read_bytes().count(b"\n") if rows.exists() else 0
        if count:
            return f"{count} rows"
    return NOTHING


def spoil(project: Path, random: Random) -> None:
    """What a power cut may do to files that nobody has waited for: cut them off, or leave zeros in place of their end.

    To `ROWS`, of which all whole lines were waited for, it may add a batch that was being written.
    """
    unsure = [*(project / FOLDER).rglob(f"{HALF}*"), *project.rglob("*.part")]
    for file in [file for path in unsure for file in (path, *path.rglob("*")) if file.is_file()]:
        size = file.stat().st_size
        os.truncate(file, random.randint(0, size))
        os.truncate(file, random.choice([size, file.stat().st_size]))
    for rows in (project / FOLDER).rglob(ROWS):
        with rows.open("ab") as file:
            file.write(bytes(random.randint(1, 5000)) + random.choice([b"", TORN]))
