"""A stage's batches, shared out over the processes that its launcher starts: the bytes of one process.

Every process gets every row, as the controls draw on the thoughts of all texts; the main process writes.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from pipeline.files import batches
from pipeline.params import Measured
from pipeline.resume import ROWS, Scratch, resumable
from pipeline.training.processes import is_main, join, processes, rank

Item, Result = TypeVar("Item"), TypeVar("Result")


@contextmanager
def shared_scratch(stage: str, params: Measured, device: str, inputs: Sequence[Path], code: Path) -> Iterator[Scratch]:
    """Open the scratch of a ``stage``: in the main process that of `resumable`, in each other one a copy of it.

    All processes must add the same rows. The fingerprint leaves the launcher out, so that a killed run resumes in any
    number of processes. Raises UserError as `resumable` does.
    """
    about = asdict(params) | {"device": device}
    del about["launcher"]
    join(device)
    with resumable(stage, about, inputs, code) if is_main() else nullcontext() as scratch:
        if processes() > 1:
            (folder,) = broadcast_object_list([scratch and str(scratch.folder.absolute())])
            scratch = scratch or Scratch(Path(folder, ROWS), copy=True)
        yield scratch
        if processes() > 1:  # the others have files in the folder, which the main process removes next
            PartialState().wait_for_everyone()


def in_turns(compute: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """``compute`` of each item, in order, in every process; process r of P computes items r, r + P, r + 2 P, ..."""
    for turn in batches(items, processes()):
        mine = [compute(item) for item in turn[rank() : rank() + 1]]  # none in the last turn, where items run out
        yield from gather_object(mine) if processes() > 1 else mine
