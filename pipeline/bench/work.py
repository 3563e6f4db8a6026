"""What a training step's work (`pipeline.plan.work`) could take: the rate of the device's matrix products."""

import argparse

import torch

from pipeline.bench.machine import DTYPES, datasheet, times
from pipeline.plan.shape import shape_of
from pipeline.plan.work import Step, products, training_flops
from pipeline.thought.model import QuietStarForCausalLM


def useful_flops(model: QuietStarForCausalLM, options: argparse.Namespace) -> float:
    """Operations of one training step that the method needs."""
    return training_flops(shape_of(model.base), step_of(options))


def step_of(options: argparse.Namespace) -> Step:
    return Step(options.batch, options.tokens, options.rationales, options.thought_tokens, options.lookahead)


def gemm_rates(model: QuietStarForCausalLM, options: argparse.Namespace, measured: dict) -> dict:
    """Operations a second of the step's matrix products, run alone, and of a 2048-cube."""
    cube = 2 * 2048**3 / product_seconds(2048, 2048, 2048, options)
    if options.what == "generate":
        return {"gemm_2048_flops_per_second": cube}
    work, seconds = 0.0, 0.0
    shapes: dict[tuple[int, int, int], float] = {}
    for rows, inputs, outputs, forward, backward in products(shape_of(model.base), step_of(options)):
        for shape, count in (
            ((rows, inputs, outputs), forward),
            ((rows, outputs, inputs), backward),
            ((inputs, rows, outputs), backward),
        ):
            shapes[shape] = shapes.get(shape, 0) + count
    for (m, k, n), count in shapes.items():
        if count:
            work += 2 * m * k * n * count
            seconds += product_seconds(m, k, n, options) * count
    rate = work / seconds
    achieved = measured["useful_flops"] / measured["step_seconds"]
    found = {
        "gemm_flops_per_second": rate,
        "gemm_fraction": achieved / rate,
        "gemm_2048_flops_per_second": cube,
    }
    peak = datasheet(options)
    return found if peak is None else {**found, "mfu": achieved / peak}


def product_seconds(m: int, k: int, n: int, options: argparse.Namespace) -> float:
    """The fastest of several (m, k) times (k, n) products."""
    dtype = DTYPES[options.dtype]
    left, right = (torch.randn(*shape, device=options.device, dtype=dtype) for shape in ((m, k), (k, n)))
    out = torch.empty(m, n, device=options.device, dtype=dtype)
    return min(times(lambda: torch.mm(left, right, out=out), 7, options.device))
