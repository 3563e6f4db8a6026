"""Arms as DVC experiments: queued with the code as it is now, run in workspaces of their own, one after the other.

`dvc exp run --run-all` is not used: it ends well when experiments failed, and `dvc exp show` then has their baseline's
metrics in their rows. An arm is done when git has a commit for it, and its figures are read from that commit.
"""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc.repo.experiments.queue.celery import LocalCeleryQueue
from omegaconf import OmegaConf

from pipeline.ablations.grid import Arm, git
from pipeline.errors import UserError
from pipeline.params import PARAMS_FILE
from pipeline.preset import options as preset

DONE, FAILED, QUEUED, RUNNING = "done", "failed", "queued", "running"
PENDING = {QUEUED, RUNNING}
POLL_SECONDS = 3
GRACE_POLLS = 10  # in which a worker may start, or put down what it has finished
STARTS = 5  # of workers that end at once
STAGE_FAILED = "ERROR: failed to reproduce"  # as DVC logs it
BUSY = "is busy, it is being blocked by"  # as DVC says of its list of queued arms while a worker takes one out

States = dict[str, str | None]  # by an arm's name; None of one that nobody has asked for yet


def queue_up(arms: Sequence[Arm]) -> None:
    """Queue every arm that is neither done nor pending.

    A call before may have been killed in the middle: what it has finished is kept, what its workers still run goes on,
    and what nobody runs any more is queued again.
    """
    _end_idle_workers()
    if not _workers():
        _give_up(arms)
    found = states(arms)
    for arm in arms:
        if found[arm.name] in (None, FAILED):
            _queue_up(arm, again=found[arm.name] == FAILED)


def _end_idle_workers() -> None:
    """DVC's worker lives on for some 10 s without work: it may end just as it takes an arm, which then nobody runs."""
    with _queue() as queue:
        work = [*queue.iter_queued(), *queue.iter_active()]
    if work or not _workers():
        return
    _dvc("queue", "stop")
    for _ in range(GRACE_POLLS):
        if not _workers():
            break
        time.sleep(POLL_SECONDS / 3)


def withdraw(arms: Sequence[Arm]) -> None:
    """Take those that are queued out of the queue."""
    for name in (name for name, state in states(arms).items() if state == QUEUED):
        _dvc("queue", "remove", name)


def wait(arms: Sequence[Arm], jobs: int, tell: Callable[[str], None], unchanged: Callable[[], bool]) -> dict[str, str]:
    """Run what is queued, ``jobs`` at a time; return what became of each arm, by name, and ``tell`` of every change.

    ``unchanged`` says whether code and parameters are still those of the arms. Ends the workers when it is interrupted.
    """
    try:
        return _wait(arms, jobs, tell, unchanged)
    except BaseException:
        _stop(arms)
        raise


def _stop(arms: Sequence[Arm]) -> None:
    """End the workers and what they run: first no more arms, then the one at work, for as long as there is one."""
    _dvc("queue", "stop")
    withdraw(arms)
    for _ in range(GRACE_POLLS):
        _give_up(arms)
        if not _workers():
            break
        time.sleep(POLL_SECONDS / 3)


def _queue_up(arm: Arm, again: bool) -> None:
    if again:
        _dvc("queue", "remove", arm.name)
    options = [word for value in preset.words(arm.params) for word in ("-S", value)]
    for _ in range(GRACE_POLLS):
        done = _dvc("exp", "run", "--queue", "--name", arm.name, *options)
        if done.returncode == 0:
            return
        if BUSY not in done.stderr:
            break
        time.sleep(POLL_SECONDS / 3)
    raise UserError(f"{arm.name} cannot be queued: {_complaint(done.stderr + done.stdout)}")


def _wait(arms: Sequence[Arm], jobs: int, tell: Callable[[str], None], unchanged: Callable[[], bool]) -> dict[str, str]:
    """Until nothing is pending in two looks: DVC's queue does not show an arm that moves from queued to running."""
    known: States = {}
    judged: set[str] = set()
    quiet = idle = starts = 0
    while quiet < 2:
        found = states(arms)
        for name in (name for name, state in found.items() if state != known.get(name)):
            tell(f"{name}: {found[name]}")
            starts = 0
        known = found | dict.fromkeys(_run_again(arms, found, judged, unchanged), QUEUED)
        pending = PENDING & set(known.values())
        quiet = 0 if pending else quiet + 1
        idle = 0 if _workers() or not pending else idle + 1
        if idle and RUNNING not in pending:
            starts += 1
            _start(jobs, starts)
        elif idle > GRACE_POLLS:
            _give_up(arms)
        time.sleep(POLL_SECONDS if pending else POLL_SECONDS / 10)
    return {name: state or FAILED for name, state in known.items()}


def _run_again(arms: Sequence[Arm], found: States, judged: set[str], unchanged: Callable[[], bool]) -> list[str]:
    """Queue what failed without a stage that did, each once: a worker was killed, or ended as it took the arm.

    Not with other code than the arm is named after: DVC queues what is in the workspace now.
    """
    failed = [arm for arm in arms if found[arm.name] == FAILED and arm.name not in judged]
    judged |= {arm.name for arm in failed}
    lost = [arm for arm in failed if not _ran(arm) and STAGE_FAILED not in _log(arm)]
    if lost and not unchanged():
        return []
    for arm in lost:
        _queue_up(arm, again=True)
    return [arm.name for arm in lost]


def _start(jobs: int, starts: int) -> None:
    """Start workers, which go on in the background: with a pipe for their output this would wait until they end."""
    if starts > STARTS:
        raise UserError("DVC's queue workers end as soon as they start: see .dvc/tmp/exps/celery/*.out")
    words = ["dvc", "queue", "start", "--jobs", str(jobs)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    subprocess.run(words, env=_environment(), check=False, **quiet)


@contextmanager
def _queue() -> Iterator[LocalCeleryQueue]:
    try:
        with Repo() as repo:
            yield repo.experiments.celery_queue
    except DvcException as error:
        raise UserError(f"DVC's queue of experiments cannot be read: {error}") from error


def states(arms: Sequence[Arm]) -> States:
    """Whether each arm is done, failed, queued or running."""
    with _queue() as queue:
        found = {done.entry.name: FAILED for done in queue.iter_done()}  # unless there is a commit
        found |= {entry.name: QUEUED for entry in queue.iter_queued()}
        found |= {entry.name: RUNNING for entry in queue.iter_active()}
    commits = revisions(arms)
    return {arm.name: DONE if arm.name in commits else found.get(arm.name) for arm in arms}


def revisions(arms: Sequence[Arm]) -> dict[str, str]:
    """The commits that DVC has made of arms that ended well, on top of the commit that they started from."""
    found = {}
    for baseline in {arm.baseline for arm in arms}:
        folder = f"refs/exps/{baseline[:2]}/{baseline[2:]}"
        for line in git("for-each-ref", "--format=%(refname) %(objectname)", folder).splitlines():
            name, commit = line.split()
            found[name.removeprefix(f"{folder}/")] = commit
    return {arm.name: found[arm.name] for arm in arms if arm.name in found}


def read(arm: Arm, path: str) -> str:
    """A file as the arm has written it. Raises UserError where its commit is of other parameters, or has no such file.

    Never from the workspace, where every arm would find the same file.
    """
    commit = revisions([arm])[arm.name]
    params = OmegaConf.create(git("show", f"{commit}:{PARAMS_FILE}"))
    for name, value in arm.params.items():
        if OmegaConf.select(params, name) != value:
            raise UserError(f"experiment {arm.name} has {name} {OmegaConf.select(params, name)}, but not {value}")
    return git("show", f"{commit}:{path}")


def reason(arm: Arm) -> str:
    """Why an arm failed: the last complaint in its log."""
    return "it ran, but DVC has kept no commit of it" if _ran(arm) else _complaint(_log(arm))


def _ran(arm: Arm) -> bool:
    with _queue() as queue:
        return any(done.entry.name == arm.name and done.result is not None for done in queue.iter_done())


def _log(arm: Arm) -> str:
    shown = _dvc("queue", "logs", arm.name)
    return shown.stderr if shown.returncode else shown.stdout


def _complaint(log: str) -> str:
    """What a stage said last of what is wrong; else the log's last line that says more than that a stage failed."""
    lines = [line.strip() for line in log.replace("\r", "\n").splitlines() if line.strip()]
    own = [line for line in lines if line.startswith("error: ")]
    more = [line for line in lines if not line.startswith(STAGE_FAILED)]
    return next(iter((own or more or lines)[-1:]), "nothing was logged")


def _give_up(arms: Sequence[Arm]) -> None:
    """End what runs of these arms, with its stages, and have DVC note that it failed.

    DVC itself would signal the number that a process once had, and leave the stage below it running.
    """
    names = {arm.name for arm in arms}
    with _queue() as queue:
        running = [entry for entry in queue.iter_active() if entry.name in names]
        for entry in running:
            _end(queue.get_infofile_path(entry.stash_rev))
            about = queue.proc.get(entry.stash_rev)
            if about is not None and about.returncode is None:
                about.returncode = -1
                queue.proc[entry.stash_rev] = about
    for entry in running:
        _dvc("queue", "kill", entry.name)


def _end(word: str) -> None:
    """End the processes that have this word in their command line, and all below them."""
    for process in psutil.process_iter(["cmdline"]):
        if word in (process.info["cmdline"] or []):
            with suppress(psutil.NoSuchProcess):
                for one in (*process.children(recursive=True), process):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()


def _workers() -> bool:
    """Whether this project has a queue worker, by the name that DVC gives it."""
    with _queue() as queue:
        mark = f"dvc-exp-{hashlib.sha256(queue.wdir.encode()).hexdigest()[:6]}-"
    return any(
        process.info["status"] != psutil.STATUS_ZOMBIE
        and any(word.startswith(mark) for word in process.info["cmdline"] or [])
        for process in psutil.process_iter(["cmdline", "status"])
    )


def _dvc(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["dvc", *words], env=_environment(), capture_output=True, text=True, check=False)


def _environment() -> dict[str, str]:
    """For a worker and its stages: `dvc` and `python` are those beside this interpreter, and commits have an author."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    known = subprocess.run(["git", "config", "user.email"], capture_output=True, check=False).stdout
    if not known:
        names = [f"GIT_{who}_{what}" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")]
        environment = dict.fromkeys(names, "ablations@localhost") | environment
    return environment
