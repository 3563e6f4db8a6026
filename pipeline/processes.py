"""A run of several processes, which a launcher has started (`pipeline.launch`), and this one's part in it."""

import os

from torch.distributed import DistError

SINGLE = "single"  # the launcher that is none
# a launcher sets all; some clusters tell every command the first two, and accelerate would wait for the others
LAUNCHED = ("RANK", "WORLD_SIZE", "LOCAL_RANK")


def is_launched() -> bool:
    """Whether a launcher has started this process."""
    return all(name in os.environ for name in LAUNCHED)


def is_main() -> bool:
    """Whether this is the only process, or the one of several that writes."""
    return not is_launched() or os.environ["RANK"] == "0"


def processes() -> int:
    """How many processes share the run."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def is_sharded() -> bool:
    """Whether the processes share the model's weights out among them (FSDP2)."""
    return is_launched() and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def stand_alone() -> None:
    """Where no launcher has started this process, keep libraries from taking a cluster's variables for one's."""
    if not is_launched():
        for name in LAUNCHED:
            os.environ.pop(name, None)


def has_lost_another(error: BaseException) -> bool:
    """Whether ``error`` says no more than that another process has ended."""
    return isinstance(error, DistError) or isinstance(error, RuntimeError) and "gloo" in str(error)
