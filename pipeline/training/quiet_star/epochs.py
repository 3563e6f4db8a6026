"""Inner epochs: several optimizer steps on the same texts and thoughts (`train.rlp.epochs`)."""

from collections.abc import Iterator
from itertools import islice

from torch.utils.data import Sampler
from transformers import TrainerCallback


class Repeated(Sampler):
    """The text indices of ``order``, the ``size`` of each optimizer step ``times`` times in a row, and as many in all.

    So a step's number says which texts it has, also for a run that resumes.
    """

    def __init__(self, order: Sampler, size: int, times: int):
        self._order, self._size, self._times = order, size, times

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[int]:
        return islice(self._repeated(), len(self))

    def _repeated(self) -> Iterator[int]:
        order = iter(self._order)
        while texts := list(islice(order, self._size)):
            for _ in range(self._times):
                yield from texts


class WholeBatches(TrainerCallback):
    """Puts a checkpoint off until all ``epochs`` of a batch are done: no checkpoint holds its thoughts."""

    def __init__(self, epochs: int):
        self._epochs = epochs

    def on_step_end(self, args, state, control, **kwargs) -> None:
        control.should_save &= state.global_step % self._epochs == 0
