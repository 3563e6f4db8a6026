"""Measure a training step sharded over processes on this machine's processor: FSDP2 over gloo, set up by accelerate.

    torchrun --nproc_per_node 4 -m tests.training.simulate_sharding

Prints a row for each way of sharding. Every process reads the same text, so loss and gradient must not depend on the
number of processes. Columns are megabytes of one process in one step: its shards of weights, gradients and optimizer
moments (states); the unsharded tensors that collectives produce or take; the peak of its memory above the start.
"""

import ctypes
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_model
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.training.trainer import BFLOAT16

BASE = {"model_type": "llama", "vocab_size": 8192, "hidden_size": 1024, "intermediate_size": 2816}
BASE |= {"num_hidden_layers": 8, "num_attention_heads": 16, "num_key_value_heads": 4, "tie_word_embeddings": False}
THOUGHTS = {"thought_tokens": 3, "lookahead": 2, "rationales": 2, "policy_weight": 10.0, "meta_token_scale": 1.0}
TOKENS, MEGA = 16, 1e6
COLLECTIVES = {"_allgather_base_": "gathered", "_reduce_scatter_base_": "scattered", "allreduce_": "all-reduced"}
COLUMNS = ["states", *COLLECTIVES.values(), "peak"]
# words of a name: a layer's weights are freed after each pass (gathered) or not (kept); two groups have all shards each
WAYS = ["gathered", "gathered, checkpointing", "gathered, bfloat16", "kept", "kept, bfloat16", "kept, two replicas"]


class Traffic(TorchDispatchMode):
    """Counts the bytes of the unsharded tensors that collectives produce or take."""

    def __init__(self):
        super().__init__()
        self.sizes = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = COLLECTIVES.get(func._opname) if func.namespace == "c10d" else None
        if name is not None:
            whole = args[1] if name == "scattered" else args[0]
            self.sizes[name] += size([whole] if isinstance(whole, Tensor) else whole)
        return func(*args, **(kwargs or {}))


def size(tensors: Iterable[Tensor]) -> int:
    """Bytes of these tensors' shards in this process."""
    return sum(getattr(tensor, "_local_tensor", tensor).nbytes for tensor in tensors)


def memory(field: str) -> int:
    """This process's bytes by Linux's count: VmRSS now, VmHWM at the peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


def sharded(way: str) -> QuietStarForCausalLM:
    """A model with random weights, sharded by the function that accelerate itself calls on GPUs only."""
    torch.manual_seed(0)
    model = QuietStarForCausalLM(QuietStarConfig(base=BASE, **THOUGHTS)).train()
    if "checkpointing" in way:
        model.activation_checkpointing_enable()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
        reshard_after_forward="gathered" in way,
        mixed_precision_policy=BFLOAT16 if "bfloat16" in way else None,
        cpu_ram_efficient_loading=False,
    )
    names, sizes = ("dp_replicate", "dp_shard"), (2, dist.get_world_size() // 2)
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision="no",
        torch_device_mesh=init_device_mesh("cpu", sizes, mesh_dim_names=names) if "replicas" in way else None,
        parallelism_config=SimpleNamespace(fsdp_dim_names=names),
    )
    return fsdp2_prepare_model(accelerator, model)


def step(model: QuietStarForCausalLM, optimizer: torch.optim.Optimizer, way: str) -> dict[str, float]:
    ids = torch.randint(0, BASE["vocab_size"], (1, TOKENS), generator=torch.Generator().manual_seed(1))
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the peak begins anew
    with Traffic() as traffic:
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in way):
            loss = model(input_ids=ids, labels=ids, sampling=Sampling(seed=3)).loss
        loss.backward()
    optimizer.step()
    found = {name: traffic.sizes[name] / MEGA for name in COLLECTIVES.values()}
    found |= {"peak": (memory("VmHWM") - before) / MEGA, "loss": loss.item()}
    moments = [moment for state in optimizer.state.values() for moment in state.values() if moment.ndim]
    gradients = [parameter.grad for parameter in model.parameters()]
    found["states"] = size([*model.parameters(), *gradients, *moments]) / MEGA
    whole = (one.full_tensor() if dist.get_world_size() > 1 else one._local_tensor for one in gradients)
    found["gradient"] = sum(gradient.double().square().sum().item() for gradient in whole) ** 0.5
    optimizer.zero_grad()
    return found


def main() -> None:
    dist.init_process_group("gloo")
    processes, first = dist.get_world_size(), dist.get_rank() == 0
    for way in WAYS if processes >= 4 else WAYS[:-1]:
        model = sharded(way)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
        step(model, optimizer, way)
        found = step(model, optimizer, way)
        if first:
            figures = " ".join(f"{name} {found[name]:.0f}" for name in COLUMNS)
            print(f"{processes} {way}: {figures} loss {found['loss']:.7g} gradient {found['gradient']:.7g}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
