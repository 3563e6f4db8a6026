"""Checkpoints: training that was killed resumes from the last one, and ends with the bytes of an uninterrupted run.

They are the HF Trainer's: weights, optimizer, schedule, position in the data and random states. They lie in the
stage's scratch folder (`pipeline.resume`) and are named ``step-N`` once everything in them is on the disk.
"""

import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, broadcast_object_list
from transformers import TrainerCallback

from pipeline.files import sync
from pipeline.resume import resumable
from pipeline.training.processes import is_main, processes

LEAST_SECONDS = 10  # between two checkpoints
LEAST_SHARE = 50  # times what the last one took to write: at most 2 % of the time goes into them
FINISHED, UNFINISHED = "step-", "checkpoint-"  # UNFINISHED is the HF Trainer's name


@contextmanager
def checkpoints(stage: str, params: Mapping, inputs: Sequence[Path], code: Path) -> Iterator[Path]:
    """Yield the folder for checkpoints of ``stage``: in every process the main one's. Arguments as for `resumable`."""
    with resumable(stage, params, inputs, code) if is_main() else nullcontext() as scratch:
        folder = scratch and scratch.folder
        for half in folder.glob(f"{UNFINISHED}*") if folder else ():
            shutil.rmtree(half)
        if processes() > 1:
            (name,) = broadcast_object_list([folder and str(folder.absolute())])
            folder = Path(name)
        yield folder


def last_checkpoint(folder: Path) -> Path | None:
    """The newest whole checkpoint in ``folder``, None if there is none."""
    return max(folder.glob(f"{FINISHED}*"), key=step_of, default=None)


def step_of(checkpoint: Path) -> int:
    """The optimizer step after which a checkpoint was taken."""
    return int(checkpoint.name.rpartition("-")[2])


class Checkpoints(TrainerCallback):
    """Takes a checkpoint in ``folder`` when it is time, and removes the one before it.

    Only at a logged step, as no checkpoint holds the sums for the next row of the log.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self._due = time.monotonic() + LEAST_SECONDS

    def on_step_end(self, args, state, control, **kwargs) -> None:
        logged = state.global_step % int(args.logging_steps) == 0
        if logged and state.global_step < state.max_steps:
            due = torch.tensor(time.monotonic() >= self._due, device=PartialState().device)
            control.should_save |= bool(broadcast(due))  # the main process's clock decides for all

    def publish(self, half: Path, began: float) -> None:
        """Rename a written checkpoint once it is on the disk. ``began``: when writing began, by `time.monotonic`."""
        PartialState().wait_for_everyone()
        if is_main():
            sync(half)
            before = list(self._folder.glob(f"{FINISHED}*"))
            half.rename(self._folder / f"{FINISHED}{step_of(half)}")
            sync(self._folder, inside=False)
            for old in before:
                shutil.rmtree(old)
        now = time.monotonic()
        self._due = now + max(LEAST_SECONDS, LEAST_SHARE * (now - began))
