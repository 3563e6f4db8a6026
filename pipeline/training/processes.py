"""This process's place among those that a launcher has started (`pipeline.training.launch`)."""

import os
from datetime import timedelta

from accelerate import PartialState
from torch.distributed import DistError

from pipeline.errors import UserError

SINGLE = "single"  # the value of a stage's launcher for one process
# a launcher sets all of them; some clusters set some of them for every process
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
PATIENCE = timedelta(minutes=30)  # with a process that is late


def number(variable: str) -> int:
    """The value of an environment variable. Raises UserError where it is not a number."""
    value = os.environ[variable]
    if not value.isdecimal():
        raise UserError(f"the environment variable {variable} is {value!r}, but must be a number")
    return int(value)


def is_launched() -> bool:
    """Whether a launcher has started this process."""
    return all(name in os.environ for name in LAUNCHED)


def rank() -> int:
    """This process's number among `processes`, from 0."""
    return number("RANK") if is_launched() else 0


def is_main() -> bool:
    """Whether this is the process that writes: the only one, or rank 0."""
    return rank() == 0


def processes() -> int:
    """The world size."""
    return number("WORLD_SIZE") if is_launched() else 1


def is_sharded() -> bool:
    """Whether the processes shard the model's weights (FSDP2)."""
    return is_launched() and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def join(device: str) -> None:
    """Wait until all processes have found each other."""
    if processes() > 1:
        PartialState(cpu=device == "cpu", backend="gloo" if device == "cpu" else None, timeout=PATIENCE)


def has_lost_another(error: BaseException) -> bool:
    """Whether ``error`` only says that another process has ended."""
    return isinstance(error, DistError) or isinstance(error, RuntimeError) and "gloo" in str(error)
