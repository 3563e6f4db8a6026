"""Tokens, operations, memory, time and disk of a run, before anything runs.

    python -m pipeline.plan                                               # params.yaml as it is
    python -m pipeline.plan model=mistral-7b data=openwebmath scale=paper hardware=node
    python -m pipeline.plan train.thought_tokens=12 plan.flops=4e14       # any parameter, as for pipeline.preset

Warns if something will not fit. The sizes of the devices are the section `plan` of params.yaml.
"""

import shutil
import sys
from collections.abc import Iterator

from pipeline import errors, params
from pipeline.errors import duration
from pipeline.params import Params
from pipeline.plan.estimate import MEASURED, Estimate, estimate, weight_bytes
from pipeline.preset import options as preset

GIGA = 1e9


def main() -> None:
    arguments = sys.argv[1:]
    if {"-h", "--help"} & set(arguments):
        print(__doc__.strip(), *preset.known(), sep="\n  ")
        return
    every = params.load(changes=preset.options(arguments))
    found = estimate(every)
    rate, devices = every.plan.flops, every.plan.devices
    rows = [("parameters", f"{found.shape.parameters:,}"), ("parameters that learn", f"{found.learned:,}")]
    rows += [(f"tokens of {kind}", f"{count:,}") for kind, count in found.tokens.items()]
    rows += [(f"operations, {stage}", f"{flops:.3g}") for stage, flops in found.flops.items()]
    rows += [(f"time, {stage}", duration(flops / rate)) for stage, flops in found.flops.items()]
    rows.append((f"time at {rate:.3g} a second", duration(found.seconds(rate))))
    if devices > 1:
        rows.append((f"time on {devices} devices", duration(found.seconds(rate, devices))))
    for kind, sizes in (("memory a device", found.memory), ("disk", found.disk)):
        rows += [(f"{kind}, {name}", f"{size / GIGA:.2f} GB") for name, size in sizes.items()]
        rows.append((kind, f"{sum(sizes.values()) / GIGA:.2f} GB"))
    for name, value in rows:
        print(f"{name:<34}{value:>16}")
    for warning in warnings(found, every):
        print(f"warning: {warning}")


def warnings(found: Estimate, every: Params) -> Iterator[str]:
    """What will not fit or will be refused, and what to do about it."""
    plan, train = every.plan, every.train
    limit, peak = f"{plan.device_memory:g} GB", sum(found.memory.values())
    if peak > plan.device_memory * GIGA:
        need = f"training takes {peak / GIGA:.1f} GB on a device that has {limit} (plan.device_memory)"
        yield f"{need}: {advice(found, every)}"
    for stage in MEASURED:
        measured = getattr(every, stage)
        weights = weight_bytes(found.shape, measured.precision) / GIGA
        if measured.device != "cpu" and weights > plan.device_memory:
            need = f"{stage} holds {weights:.1f} GB of weights, in {measured.precision}, where plan.device_memory is"
            instead = f"{stage}.device to cpu if that has more"
            if measured.precision == "float32":
                instead = f"{stage}.precision to bfloat16, or {instead}"
            yield f"{need} {limit}: set {instead}"
    free = plan.disk * GIGA if plan.disk is not None else shutil.disk_usage(".").free
    if sum(found.disk.values()) > free:
        yield f"{sum(found.disk.values()) / GIGA:.1f} GB go to the disk, which has {free / GIGA:.1f} GB free"
    if plan.devices > 1 and train.launcher == "single":
        one = "train.launcher is single, so one device takes all passes of a step in turn"
        yield f"{one}: the memory and time of {plan.devices} are those with launchers/node.yaml or nodes.yaml"
    slow = [stage for stage in MEASURED if getattr(every, stage).precision != train.precision]
    if slow and train.precision == "bfloat16":
        yield f"training is in bfloat16, {', '.join(slow)} in float32, which runs slower than plan.flops"
    for name, value in (("optimizer", "adamw"), ("positions", None), ("clip", "together"), ("ema", None)):
        if plan.devices > 1 and getattr(train, name) != value:
            yield f"train.{name} is {getattr(train, name)}, which is refused where weights are sharded (FSDP2)"
    if train.accumulation % plan.devices:
        yield f"train.accumulation ({train.accumulation}) passes cannot be shared out over {plan.devices} devices"


def advice(found: Estimate, every: Params) -> str:
    """The first setting that would make training fit and is not made yet."""
    train = every.train
    states = sum(found.memory[kind] for kind in ("weights", "gradients", "optimizer", "gathered"))
    if states > every.plan.device_memory * GIGA:
        less = "take a smaller model or more devices"
        if train.adapt == "whole":
            less = f"{less}, or set train.adapt to lora"
        elif train.precision == "float32":
            less = f"set train.precision to bfloat16, or {less}"
        return f"weights, gradients and optimizer alone are {states / GIGA:.1f} GB; {less}"
    if train.batch_size > 1:
        return "lower train.batch_size and raise train.accumulation"
    if not train.checkpointing:
        return "set train.checkpointing"
    if every.plan.devices > 1:
        return "take shorter spans, or set train.adapt to lora"
    if train.positions:
        return "lower train.positions"
    clip = " and train.clip to together" if train.clip == "apart" else ""
    return f"set train.positions below {every.tokenize.span}{clip}"


if __name__ == "__main__":
    errors.run(main)
