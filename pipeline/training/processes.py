"""A run of several processes, which a launcher has started (`pipeline.training.launch`), and this one's part in it."""

import os
from datetime import timedelta
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from torch.distributed import DistError

from pipeline.errors import UserError

SINGLE = "single"  # the launcher that is none
# a launcher sets all; some clusters tell every command the numbers, and accelerate would wait for the others
NUMBERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
LAUNCHED = (*NUMBERS, "MASTER_ADDR", "MASTER_PORT")
PRECISION = "ACCELERATE_MIXED_PRECISION"  # params.yaml says what a process does that nobody has launched
PATIENCE = timedelta(minutes=30)  # with a process that is late


def is_launched() -> bool:
    """Whether a launcher has started this process. Raises UserError where a variable of one is no number."""
    if not all(name in os.environ for name in LAUNCHED):
        return False
    for name in NUMBERS:
        if not os.environ[name].isdecimal():
            raise UserError(f"the environment variable {name} is {os.environ[name]!r}, but must be a number")
    return True


def is_main() -> bool:
    """Whether this is the only process, or the one of several that writes."""
    return not is_launched() or os.environ["RANK"] == "0"


def processes() -> int:
    """How many processes share the run."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_sharded() -> bool:
    """Whether the processes share the model's weights out among them (FSDP2)."""
    return is_launched() and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join(device: str) -> None:
    """Where this process is one of several, wait until all have found each other; to be called before `agreed`."""
    if processes() > 1:
        PartialState(cpu=device == "cpu", backend="gloo" if device == "cpu" else None, timeout=PATIENCE)


def agreed(path: Path | None) -> Path:
    """The main process's ``path`` in all processes, the others of which have None."""
    if processes() == 1:
        return path
    (told,) = broadcast_object_list([path and str(path.absolute())])
    return Path(told)


def stand_alone() -> None:
    """Where no launcher has started this process, keep libraries from taking a cluster's variables for one's."""
    if not is_launched():
        for name in (*LAUNCHED, PRECISION):
            os.environ.pop(name, None)


def has_lost_another(error: BaseException) -> bool:
    """Whether ``error`` says no more than that another process has ended."""
    return isinstance(error, DistError) or isinstance(error, RuntimeError) and "gloo" in str(error)
