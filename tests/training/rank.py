"""One process of a run that `torchrun` starts: `stages.train` with a checkpoint at every step.

With ACCELERATE_USE_FSDP it runs under FSDP2, which accelerate itself allows on GPUs only. The main process saves the
first step's gradients, as they are before they are clipped, to the file GRADIENTS.
"""

import os
import runpy
import sys
from pathlib import Path

import torch
from accelerate import DistributedType
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor

from tests.training.test_checkpoints import often


def shard_on_a_processor() -> None:
    start = AcceleratorState.__init__

    def start_sharded(self: AcceleratorState, *args: object, fsdp_plugin: object = None, **kwargs: object) -> None:
        start(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.distributed_type, self.fsdp_plugin = DistributedType.FSDP, fsdp_plugin

    AcceleratorState.__init__ = start_sharded


def save_gradients(path: Path) -> None:
    from pipeline.training.trainer import CheckedTrainer

    clip = CheckedTrainer._clip_grad_norm

    def save_and_clip(self: CheckedTrainer, model: torch.nn.Module) -> torch.Tensor:
        if not self.state.global_step:
            found = {name.removeprefix("module."): p.grad for name, p in model.named_parameters()}
            found = {name: g.full_tensor() if isinstance(g, DTensor) else g for name, g in found.items()}
            if os.environ.get("RANK", "0") == "0":
                torch.save(found, path)
        return clip(self, model)

    CheckedTrainer._clip_grad_norm = save_and_clip


if __name__ == "__main__":
    os.chdir(os.environ["PROJECT"])
    shard_on_a_processor()
    often()
    if "UNEVEN" in os.environ:  # as on machines of different kinds, whose own names for their work would differ
        torch.set_num_threads(1 + int(os.environ["RANK"]))
    save_gradients(Path(os.environ["GRADIENTS"]))
    sys.argv = ["train"]
    runpy.run_module("stages.train", run_name="__main__")
