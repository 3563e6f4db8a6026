"""Kill `dvc repro` at a random moment, in one of several ways; see what is then left on the disk."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

# which processes are killed: all of a run, DVC alone, the stage alone; power: all, and then `spoil`
GROUP, DVC, STAGE, POWER = WAYS = ("group", "dvc", "stage", "power")
LONG = 300  # seconds: what takes as long hangs
PATIENCE = 20  # seconds in which the other processes must end by themselves
NOTHING, NO_STAGE = "nothing", "DVC, between stages"
TORN = b'"correct": true}\n'  # the end of a row whose beginning a power cut has left as zeros


@dataclass
class Kill:
    """One kill. ``left`` and ``resumed_from`` are a checkpoint ("step 40"), rows ("64 rows") or NOTHING."""

    stage: str
    seconds: float  # since the stage began
    way: str
    left: str  # what the stage can resume from
    orphans: int  # processes that were neither killed nor ended by themselves
    resumed_from: str = ""  # what the stage resumed from when run again; empty if it was killed before it said so


def call(folder: Path, *words: str) -> str:
    """Run a command in ``folder``; return what it prints. Its errors are shown."""
    return subprocess.run(words, cwd=folder, env=_environment(), check=True, stdout=subprocess.PIPE, text=True).stdout


def checkpoint_often(project: Path) -> None:
    """Have a copy of the project take a checkpoint at every row of the log."""
    code = project / "pipeline/training/checkpoints.py"
    code.write_text(code.read_text().replace("LEAST_SECONDS = 10", "LEAST_SECONDS = 0"))


def wait_for(happened: Callable[[], object], alive: Callable[[], bool] = lambda: True) -> None:
    end = time.monotonic() + LONG
    while not happened():
        assert alive() and time.monotonic() < end, "nothing happened"
        time.sleep(0.05)


def begin(project: Path, log: Path) -> subprocess.Popen:
    """Start `dvc repro` in a process group of its own, with its output in ``log``."""
    with log.open("wb") as file:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        return subprocess.Popen(["dvc", "repro"], cwd=project, env=_environment(), process_group=0, **pipes)


def _environment() -> dict[str, str]:
    """With the `dvc` and `python` of this interpreter, and with a name for commits."""
    names = {f"GIT_{who}_{what}": "chaos@localhost" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    return names | os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


def running(dvc: subprocess.Popen) -> tuple[str, float]:
    """The stage that is running, by DVC's name without its parameters, and for how many seconds."""
    for process in _children(dvc):
        with suppress(psutil.Error):  # it has just ended
            if name := process.environ().get("DVC_STAGE"):
                return name.partition("@")[0], time.time() - process.create_time()
    return NO_STAGE, 0.0


def kill(project: Path, dvc: subprocess.Popen, random: Random, longest: float) -> Kill | None:
    """Kill a run at most ``longest`` seconds from now. None if it has ended before that.

    Not in the first quarter of that time, in which stages load libraries and have nothing to lose.
    """
    wait, way = random.uniform(longest / 4, longest), random.choice(WAYS)
    damage = Random(random.random())  # of its own, so that the moments do not depend on what there is to spoil
    with suppress(subprocess.TimeoutExpired):
        dvc.wait(wait)
        return None
    children, (stage, seconds) = _children(dvc), running(dvc)
    way = DVC if stage == NO_STAGE else way
    if way != STAGE:
        dvc.kill()
    if way != DVC:
        _kill(children)
    _, alive = psutil.wait_procs([psutil.Process(dvc.pid), *children], timeout=PATIENCE)
    _kill(alive)
    dvc.wait()
    one = Kill(stage, seconds, way, left(project), len(alive))
    if way == POWER:
        spoil(project, damage)
    return one


def _children(dvc: subprocess.Popen) -> list[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(dvc.pid).children(recursive=True)
    return []


def _kill(processes: list[psutil.Process]) -> None:
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            process.kill()


def left(project: Path) -> str:
    """What a killed stage can resume from: its last checkpoint, or its rows."""
    steps = [int(path.name.removeprefix("step-")) for path in (project / ".resume").rglob("step-*")]
    files = [path.read_bytes().splitlines(keepends=True) for path in (project / ".resume").rglob("rows.jsonl")]
    rows = sum(line.startswith(b"{") and line.endswith(b"\n") for lines in files for line in lines)  # without torn ones
    return f"step {max(steps)}" if steps else f"{rows} rows" if rows else NOTHING


def spoil(project: Path, random: Random) -> None:
    """Damage what nobody has synced, as a power cut may: cut files off, or fill their end with zeros.

    Whole lines of rows.jsonl are synced; a batch that was being written may follow them.
    """
    unsure = [*(project / ".resume").rglob("checkpoint-*"), *project.rglob("*.part")]
    for file in [file for path in unsure for file in (path, *path.rglob("*")) if file.is_file()]:
        size = file.stat().st_size
        os.truncate(file, random.randint(0, size))
        os.truncate(file, random.choice([size, file.stat().st_size]))
    for rows in (project / ".resume").rglob("rows.jsonl"):
        with rows.open("ab") as file:
            file.write(bytes(random.randint(1, 5000)) + random.choice([b"", TORN]))
