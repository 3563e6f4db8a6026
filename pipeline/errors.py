"""A user's mistake, told in one line: what is wrong and what to do."""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

INTERRUPTED = 130  # the exit code that a shell gives a command that Ctrl-C has ended
PATIENCE = 20  # seconds: ending a process that has torch in it takes some
LONGEST = 1000  # characters of a message: a bad value may be a whole file
TELLING = 40  # characters of a reason: a shorter one needs the lines after it
OUT_OF_MEMORY = re.compile("OutOfMemoryError|can't allocate memory")  # torch's, of a GPU and of a processor
MEMORY_KNOBS = "docs/engine.md and docs/large-models.md say what else takes less"


class UserError(Exception):
    """Something that the user can put right, in one printable line; a stage prints it and ends with exit code 1."""

    def __init__(self, text: str):
        line = " ".join(text.split())
        shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
        super().__init__(shown if len(shown) <= LONGEST else f"{shown[:LONGEST]}…")


def reason(error: BaseException) -> str:
    """An exception of a library, in one line: as much of its text as says something."""
    text = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        text = f"{text} {line}".strip()
        if len(text) >= TELLING and not line.endswith(":"):
            break
    return text if " " in text else ": ".join(filter(None, (type(error).__name__, text)))


def first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


@contextmanager
def optional(package: str, why: str) -> Iterator[None]:
    """Raise UserError where the block imports ``package``, an optional one, and it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(f"{why}, which needs {package}: pip install {package}") from error


def run(stage: Callable[[], None]) -> None:
    """Run a stage's main function; a user's mistake ends it with one line on standard error and no traceback."""
    _show_log()
    try:
        _take_over_ctrl_c()
        _check_workspace()
        stage()
    except UserError as error:
        _exit(str(error))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # once is enough
        _close_progress_bars()
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno is None:  # not the system's own complaint (a full disk, a missing permission)
            raise
        _exit(f"{error.strerror}: {error.filename or 'while writing'}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        _exit(f"out of memory ({reason(error)}): lower the stage's batch_size; {MEMORY_KNOBS}")


def run_stage(stage: Callable[..., None], *names: str) -> None:
    """`run`, with the command's arguments, one for each of ``names``."""
    run(lambda: stage(*_arguments(names)))


def _arguments(names: Sequence[str]) -> list[str]:
    given = sys.argv[1:]
    if len(given) != len(names):
        command = " ".join([f"python -m stages.{Path(sys.argv[0]).stem}", *names])
        raise UserError(f"usage: {command} (all else is in params.yaml)")
    return given


def _take_over_ctrl_c() -> None:
    """From `stages` and `pipeline`, which have it end a command while libraries are loaded."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _exit(message: str) -> None:
    _close_progress_bars()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)  # where all processes fail alike, the first one tells, and the others are ended meanwhile
    sys.exit(f"error: {message}")


def _show_log() -> None:
    """What the project's own code logs (the attention it picked) goes to standard error, as it is."""
    log = logging.getLogger("pipeline")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())


def _check_workspace() -> None:
    """DVC hashes the code in its workspace: another copy, say an installed one, would spoil the run-cache for good."""
    here, root = Path(__file__).resolve(), Path.cwd().resolve()
    if not here.is_relative_to(root):
        raise UserError(f"the code in use is {here.parent}, not this folder's: run `python -m` from the project's root")


def _close_progress_bars() -> None:
    """So that the message has a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
