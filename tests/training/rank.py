"""Training in several processes that are forked, each as if a launcher had started it: a tenth of a launcher's time."""

import multiprocessing
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

from tests.chaos.kills import LONG
from tests.stage_runner import ENVIRONMENT, LIBRARIES, TRAIN
from tests.stage_runner import _main as run_fork
from tests.training.test_checkpoints import often


def start(folder: Path, processes: int, way: dict[str, str], stage: str = TRAIN) -> list[BaseProcess]:
    """The training ``stage`` in so many ranks, with a checkpoint at every logged step, under FSDP2 if ``way`` says so.

    Rank N's standard error goes to ``folder``/logN. With UNEVEN in ``way``, ranks have different numbers of threads.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    own = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    own |= {"ACCELERATE_USE_CPU": "true", **way}
    ranks = []
    for rank in range(processes):
        (folder / f"log{rank}").touch()
        prepare = partial(be_rank, own | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, folder / "gradients.pt")
        ranks.append(context.Process(target=run_fork, args=(folder, stage, folder / f"log{rank}", prepare)))
        with mock.patch.dict(os.environ, ENVIRONMENT):
            ranks[-1].start()
    return ranks


def finish(folder: Path, ranks: list[BaseProcess]) -> list[str]:
    """Wait until all ranks have succeeded. Returns each one's standard error."""
    with ended(ranks):
        for rank in ranks:
            rank.join(LONG)
        logs = [(folder / f"log{number}").read_text() for number in range(len(ranks))]
        assert [rank.exitcode for rank in ranks] == [0] * len(ranks), logs
    return logs


@contextmanager
def ended(ranks: list[BaseProcess]) -> Iterator[None]:
    """Kill the ranks, as `kill -9` does, when the block ends."""
    try:
        yield
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def be_rank(environment: dict[str, str], gradients: Path) -> None:
    """Have the main process save the first step's ``gradients``, before they are clipped."""
    os.environ.update(environment)
    often()
    if "UNEVEN" in environment:  # as on machines of different kinds, whose fingerprints would differ
        torch.set_num_threads(1 + int(environment["RANK"]))
    start = AcceleratorState.__init__

    def start_sharded(self: AcceleratorState, *args: object, fsdp_plugin: object = None, **kwargs: object) -> None:
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:  # accelerate itself heeds ACCELERATE_USE_FSDP on GPUs only
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = start_sharded
    from pipeline.training.trainer import CheckedTrainer

    clip = CheckedTrainer._clip_grad_norm

    def save_and_clip(self: CheckedTrainer, model: torch.nn.Module) -> torch.Tensor:
        if not self.state.global_step:
            found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
            found = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
            if os.environ["RANK"] == "0":
                torch.save(found, gradients)
        return clip(self, model)

    CheckedTrainer._clip_grad_norm = save_and_clip
