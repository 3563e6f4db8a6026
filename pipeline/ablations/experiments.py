"""Arms as DVC experiments: each runs in a throw-away clone of the workspace, which shares cache and unfinished work.

DVC's own queue is not used: it loses arms whose worker is killed, and `dvc exp run --run-all` ends well when
experiments failed. An arm is done when this repository has the commit of its experiment; its figures are read from it.
"""

import fcntl
import os
import re
import shutil
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from pipeline.ablations.grid import Arm, git
from pipeline.errors import UserError
from pipeline.preset import options as preset

FOLDER = Path(".dvc/tmp/ablations")  # holds clones and logs; DVC keeps .dvc/tmp out of git
RESUME = ".resume"  # where stages keep unfinished work (pipeline.resume)
PRINT = partial(print, flush=True)
STAGE_ENDED = re.compile(r"[a-z_]+( \w+ \d+)?: [\d hmins]+")  # as `errors.run_stage` says: train pause 1: 2 min 3 s
DVC = (sys.executable, "-m", "dvc")


def parser(command: str, about: str) -> ArgumentParser:
    """The parser of a ``command``, whose help says what it is ``about``, line by line."""
    return ArgumentParser(prog=command, description=about, formatter_class=RawDescriptionHelpFormatter)


def parse(parser: ArgumentParser, what: str = "arms") -> Namespace:
    """The options of a command that runs experiments, with how many at a time. Raises UserError for fewer than one."""
    parser.add_argument("--jobs", type=int, default=1, help=f"{what} at a time (default: %(default)s)")
    options = parser.parse_args()
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}, but must be at least 1")
    return options


def check_done(failed: Mapping[str, str], asked: int, what: str = "arms") -> None:
    """Raise UserError if experiments ``failed`` (name: reason) of those ``asked`` for."""
    if failed:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise UserError(f"{len(failed)} of {asked} {what} failed: {reasons}. Put it right and run this again")


def run(
    arms: Sequence[Arm],
    jobs: int,
    tell: Callable[[str], None] = PRINT,
    done: Callable[[Arm], None] = lambda arm: None,
) -> dict[str, str]:
    """Run the arms that are not done, ``jobs`` at a time.

    ``tell`` gets a line when an arm starts, when one of its stages has ended and when it ends itself.
    ``done`` gets each arm as soon as it is done, first those that an earlier call has finished.
    Returns {arm name: why it failed}. Ctrl-C kills the arms and their stages. When killed itself, this process leaves
    the arms running; they hold the lock, so that the next call waits for them.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("waiting for the arms of another call, which still run")
            fcntl.flock(lock, fcntl.LOCK_EX)
        for clone in filter(Path.is_dir, FOLDER.iterdir()):  # of a killed call: its arm may have finished since
            _fetch(clone)
            shutil.rmtree(clone)
        failed: dict[str, str] = {}

        def finish(arm: Arm, future: Future | None = None) -> None:
            why = None
            try:
                if future is None or not (why := future.result()):
                    done(arm)
            except (UserError, OSError, subprocess.SubprocessError) as error:  # the other arms go on
                why = str(error)
            if why:
                failed[arm.name] = why
                tell(f"{arm.name}: failed ({why})")

        missing = []
        for arm in arms:
            if git("for-each-ref", arm.ref):
                finish(arm)
            else:
                missing.append(arm)
        environment = _environment()
        shown = subprocess.run([*DVC, "cache", "dir"], env=environment, check=True, capture_output=True, text=True)
        cache = Path(shown.stdout.strip()).resolve()
        with ThreadPoolExecutor(jobs) as pool:
            futures = {pool.submit(_run, arm, cache, environment, lock.fileno(), tell): arm for arm in missing}
            try:
                for future in as_completed(futures):
                    finish(arm := futures[future], future)
                    if arm.name not in failed:
                        tell(f"{arm.name}: done")
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                _kill(futures)
                raise
    return failed


def _kill(futures: Iterable[Future]) -> None:
    """Kill this process's children and theirs until the ``futures`` that run them are done."""
    while not all(future.done() for future in futures):  # a thread may start one more process meanwhile
        for child in psutil.Process().children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
        time.sleep(0.1)


def _environment() -> dict[str, str]:
    """That of arms: `python` is this interpreter, and experiments have an author even if git knows none."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"}
    for what in ("name", "email"):  # a clone does not inherit what this repository's configuration says
        known = subprocess.run(["git", "config", f"user.{what}"], capture_output=True, text=True, check=False)
        for who in ("AUTHOR", "COMMITTER"):
            environment.setdefault(f"GIT_{who}_{what.upper()}", known.stdout.strip() or "ablations@localhost")
    return environment


def _run(arm: Arm, cache: Path, environment: dict[str, str], lock: int, tell: Callable[[str], None]) -> str | None:
    """Run one arm with DVC's ``cache``, while ``lock`` is held; return why it failed, or None.

    The clone is deleted unless its experiment could not be fetched; the next call tries again.
    """
    clone, log = FOLDER / arm.name, FOLDER / f"{arm.name}.log"
    tell(f"{arm.name}: running, its log is {log}")
    git("clone", "--quiet", "--shared", "--no-checkout", ".", str(clone))
    git("-C", str(clone), "checkout", "--quiet", "--detach", arm.baseline)
    git("-C", str(clone), "restore", f"--source={arm.snapshot}", "--staged", "--worktree", ".")
    if Path(".dvc/config.local").exists():
        shutil.copy(".dvc/config.local", clone / ".dvc")
    Path(RESUME).mkdir(exist_ok=True)
    (clone / RESUME).symlink_to(Path(RESUME).resolve())
    (clone / ".git/info/exclude").write_text(f"{RESUME}\n")
    subprocess.run([*DVC, "config", "--local", "cache.dir", str(cache)], cwd=clone, env=environment, check=True)
    changes = [part for word in preset.words(arm.params) for part in ("-S", word)]
    words = [*DVC, "exp", "run", "--name", arm.name, arm.target, *changes]
    with log.open("wb") as file, log.open(errors="replace") as written:
        pipes = {"stdin": subprocess.DEVNULL, "stdout": file, "stderr": subprocess.STDOUT}
        process, text = subprocess.Popen(words, cwd=clone, env=environment, pass_fds=[lock], **pipes), ""
        while process.poll() is None:
            with suppress(subprocess.TimeoutExpired):
                process.wait(1)
            *lines, text = (text + written.read()).split("\n")
            for line in filter(STAGE_ENDED.fullmatch, lines):
                tell(f"{arm.name}: {line}")
    try:
        _fetch(clone)
    except UserError as error:
        return f"its experiment is kept in {clone}: {error}"
    shutil.rmtree(clone)
    if git("for-each-ref", arm.ref):
        return None
    if not process.returncode:
        return "it ran, but DVC has kept no commit of it"
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    others = [line for line in lines if not line.startswith("ERROR: failed to reproduce")]  # DVC's own last line
    return (errors or others or lines or ["nothing was logged"])[-1].removeprefix("error: ")


def _fetch(clone: Path) -> None:
    """Fetch the experiments that a clone has finished, on top of any commit. Raises UserError if git cannot."""
    own = ["git", f"--git-dir={clone}/.git", "for-each-ref", "--format=+%(refname):%(refname)", "refs/exps/??/*/*"]
    refs = subprocess.run(own, capture_output=True, text=True, check=False).stdout.split()  # none in half a clone
    if refs:  # not refs/exps/*, as DVC's stash and state lie there too
        git("fetch", "--quiet", "--no-write-fetch-head", str(clone), *refs)
