"""How a command ends: a user's mistake is told in one line, Ctrl-C without a word, a stage says how long it took.

The first import of the package is this module, which loads no library, so that Ctrl-C is quiet while torch loads.
"""

import logging
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

STARTED = time.monotonic()
INTERRUPTED = 130  # the exit code that a shell gives a command that Ctrl-C has ended
PATIENCE = 20  # seconds: ending a process that has loaded torch takes some
LONGEST_MESSAGE = 1000  # characters: a bad value may be a whole file
SHORT_REASON = 40  # characters: the first line of an exception that is shorter needs the next one
OUT_OF_MEMORY = re.compile("OutOfMemoryError|can't allocate memory")  # torch on a GPU and on a CPU
MEMORY_KNOBS = "docs/method.md (memory knobs) and docs/running.md list settings that need less"

# without a network the hub's client would tell of each of its tries before the one line that says why a command ended
os.environ.setdefault("HF_HUB_VERBOSITY", "error")

is_command = any(option == "-m" and re.match(r"(stages|pipeline)\.", name) for option, name in pairwise(sys.orig_argv))
if is_command and signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it ignores Ctrl-C
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))  # until `run` takes over


class UserError(Exception):
    """A mistake that the user can put right, told in one printable line."""

    def __init__(self, text: str):
        line = " ".join(text.split())
        shown = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in line)
        super().__init__(shown if len(shown) <= LONGEST_MESSAGE else f"{shown[:LONGEST_MESSAGE]}…")


def reason(error: BaseException) -> str:
    """A library's exception in one line: the first lines of its text, until they say something."""
    text = ""
    for line in filter(None, map(str.strip, str(error).splitlines())):
        text = f"{text} {line}".strip()
        if len(text) >= SHORT_REASON and not line.endswith(":"):
            break
    return text if " " in text else ": ".join(filter(None, (type(error).__name__, text)))


def first_line(text: str) -> str:
    return next(iter(text.splitlines()), "")


@contextmanager
def optional(package: str, why: str) -> Iterator[None]:
    """Raise UserError if the block imports the optional ``package`` and it is not installed."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(f"{why}, which needs {package}: pip install {package}") from error


def run(command: Callable[[], None], anywhere: bool = False) -> None:
    """Run a command's main function. A user's mistake ends it with exit code 1 and one line on standard error.

    ``anywhere``: in any folder, as what it writes is no output of the graph.
    """
    log = logging.getLogger("pipeline")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, here = Path(__file__).resolve().parent, Path.cwd().resolve()
        if not (anywhere or code.is_relative_to(here)):  # DVC hashes this folder's code: other code spoils its cache
            raise UserError(f"the code in use is {code}, not this folder's: run `python -m` from the project's root")
        command()
    except UserError as error:
        _exit(str(error))
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a second Ctrl-C must not interrupt the clean-up
        _close_progress_bars()
        sys.exit(INTERRUPTED)
    except OSError as error:
        if error.errno is None:  # raised by a library, not by the system (a full disk, a missing permission)
            raise
        _exit(f"{error.strerror}: {error.filename or 'while writing'}")
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not OUT_OF_MEMORY.search(f"{type(error).__name__}: {error}"):
            raise
        _exit(f"out of memory ({reason(error)}): lower the stage's batch_size; {MEMORY_KNOBS}")


def run_stage(stage: Callable[..., None], *names: str) -> None:
    """`run` a stage with the command's arguments, which ``names`` are called; then print how long the command took."""
    name, arguments = Path(sys.argv[0]).stem, sys.argv[1:]

    def command() -> None:
        if len(arguments) != len(names):
            usage = " ".join([f"python -m stages.{name}", *names])
            raise UserError(f"usage: {usage} (all else is in params.yaml)")
        stage(*arguments)

    run(command)
    if "LOCAL_RANK" not in os.environ:  # one of several processes: the one that launched them tells
        print(f"{' '.join([name, *arguments])}: {duration(time.monotonic() - STARTED)}", file=sys.stderr)


def duration(seconds: float) -> str:
    """Seconds as a person reads them: 42 s, 3 min 12 s, 2 h 5 min, 6 d 4 h."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s" if minutes else f"{seconds} s"


def _exit(message: str) -> None:
    _close_progress_bars()
    if os.environ.get("LOCAL_RANK", "0") != "0":
        time.sleep(PATIENCE)  # if all processes fail alike, the first one tells, and the others are ended meanwhile
    sys.exit(f"error: {message}")


def _close_progress_bars() -> None:
    """Leave the message a line of its own."""
    if "tqdm" in sys.modules:
        for bar in list(getattr(sys.modules["tqdm"].tqdm, "_instances", ())):
            bar.close()
