"""Arms as DVC experiments: queued with the code as it is now, run in workspaces of their own, one after the other.

`dvc exp run --run-all` is not used: it ends well when experiments failed, and `dvc exp show` then has their baseline's
metrics in their rows. An arm is done when git has a commit for it, and its figures are read from that commit.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
from dvc.repo import Repo
from omegaconf import OmegaConf

from pipeline import preset
from pipeline.ablations.grid import Arm
from pipeline.errors import UserError
from pipeline.params import PARAMS_FILE

DONE, FAILED, QUEUED, RUNNING = "done", "failed", "queued", "running"
POLL_SECONDS = 3
GRACE_SECONDS = 30  # in which a queue's worker may start, or put down what it has finished
LOG_LINES = 2


def run(arms: Sequence[Arm], jobs: int, tell: Callable[[str], None]) -> dict[str, str]:
    """Run every arm that is not done; return what became of each, by name, and ``tell`` of every change.

    A second process may have been killed in the middle: what it has finished is kept, what its workers still run is
    waited for, and the rest is queued again. Ends the workers when it is interrupted.
    """
    _give_up_the_dead(arms)
    for arm in arms:
        if states([arm])[arm.name] in (None, FAILED):
            _queue(arm)
    try:
        return _wait(arms, jobs, tell)
    except BaseException:
        _dvc("queue", "stop", "--kill")
        raise


def _queue(arm: Arm) -> None:
    if _entries().get(arm.name):  # of a run that failed, or whose commit somebody has removed
        _dvc("queue", "remove", arm.name)
    options = [word for value in preset.words(arm.params) for word in ("-S", value)]
    done = _dvc("exp", "run", "--queue", "--name", arm.name, *options)
    if done.returncode:
        raise UserError(f"{arm.name} cannot be queued: {_complaint(done.stderr + done.stdout)}")


def _wait(arms: Sequence[Arm], jobs: int, tell: Callable[[str], None]) -> dict[str, str]:
    known: dict[str, str | None] = {}
    alive = time.monotonic()
    while True:
        found = states(arms)
        for name in (name for name, state in found.items() if state != known.get(name)):
            tell(f"{name}: {found[name]}")
        known = found
        if not {QUEUED, RUNNING} & set(found.values()):
            return {name: state or FAILED for name, state in found.items()}
        if _workers():
            alive = time.monotonic()
        elif QUEUED in found.values() and RUNNING not in found.values():
            _start(jobs)
        elif time.monotonic() - alive > GRACE_SECONDS:
            _give_up_the_dead(arms)
        time.sleep(POLL_SECONDS)


def _start(jobs: int) -> None:
    """Start workers, which go on in the background: with a pipe for their output this would wait until they end."""
    words = ["dvc", "queue", "start", "--jobs", str(jobs)]
    subprocess.run(words, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)
    time.sleep(POLL_SECONDS)


def states(arms: Sequence[Arm]) -> dict[str, str | None]:
    """Whether each arm is done, failed, queued or running; None of one that nobody has asked for yet."""
    entries = _entries()
    queue = {"Queued": QUEUED, "Running": RUNNING}
    found: dict[str, str | None] = {}
    for arm in arms:
        status = entries.get(arm.name)
        found[arm.name] = DONE if revision(arm) else queue.get(status, FAILED) if status else None
    return found


def _entries() -> dict[str, str]:
    """The status of every experiment in DVC's queue, by name."""
    with Repo() as repo:
        return {entry["name"]: entry["status"] for entry in repo.experiments.celery_queue.status() if entry["name"]}


def revision(arm: Arm) -> str | None:
    """The commit that DVC has made of an arm that ended well, on top of the commit that is checked out."""
    head = _git("rev-parse", "HEAD").stdout.strip()
    found = _git("rev-parse", "--verify", "--quiet", f"refs/exps/{head[:2]}/{head[2:]}/{arm.name}")
    return found.stdout.strip() or None


def read(arm: Arm, path: str) -> str:
    """A file as the arm has written it. Raises UserError where its commit is of other parameters, or has no such file.

    Never from the workspace, where every arm would find the same file.
    """
    commit = revision(arm)
    params = OmegaConf.create(_git("show", f"{commit}:{PARAMS_FILE}").stdout)
    for name, value in arm.params.items():
        if OmegaConf.select(params, name) != value:
            raise UserError(f"experiment {arm.name} has {name} {OmegaConf.select(params, name)}, but not {value}")
    shown = _git("show", f"{commit}:{path}")
    if shown.returncode:
        raise UserError(f"experiment {arm.name} has no {path}")
    return shown.stdout


def reason(arm: Arm) -> str:
    """Why an arm failed: the last complaint in its log."""
    shown = _dvc("queue", "logs", arm.name)
    return _complaint(shown.stdout) if shown.returncode == 0 else _complaint(shown.stderr)


def _complaint(log: str) -> str:
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    told = [line for line in lines if line.lower().startswith("error")]
    return "; ".join((told or lines)[:LOG_LINES]) or "nothing was logged"


def _give_up_the_dead(arms: Sequence[Arm]) -> None:
    """Mark as failed what a worker that is no more has left running."""
    names = [name for name, state in states(arms).items() if state == RUNNING]
    if names and not _workers():
        _dvc("queue", "kill", "--force", *names)  # an orphan ends here
        _dvc("queue", "kill", *names)  # and of one that has ended DVC notes that it failed


def _workers() -> list[psutil.Process]:
    """This project's queue workers, by the name that DVC gives them."""
    with Repo() as repo:
        mark = f"dvc-exp-{hashlib.sha256(repo.experiments.celery_queue.wdir.encode()).hexdigest()[:6]}-"
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        if process.info["status"] != psutil.STATUS_ZOMBIE and any(word.startswith(mark) for word in words):
            found.append(process)
    return found


def _dvc(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["dvc", *words], env=_environment(), capture_output=True, text=True, check=False)


def _environment() -> dict[str, str]:
    """For a worker and its stages: `dvc` and `python` are those beside this interpreter."""
    return os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}


def _git(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=False)
