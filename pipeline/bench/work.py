"""The work that a training step needs, and what the device's matrix products can do.

Useful work counts 2 operations a weight and row forward and 4 backward, for all rows that the method has, whether or
not the engine finds a way round some of them, and attention over the half of the text that a position sees on average
and over the thought itself.
"""

import argparse
from collections.abc import Iterator

import torch

from pipeline.bench.machine import DTYPES, datasheet, times
from pipeline.thought.layout import Layout
from pipeline.thought.model import QuietStarForCausalLM

HEAD_ROWS = 512


def products(model: QuietStarForCausalLM, options: argparse.Namespace) -> Iterator[tuple[int, int, int, int, int]]:
    """The step's matrix products: rows, inputs, outputs, times forward, times backward."""
    layout = Layout(options.thought_tokens, options.lookahead)
    texts, thoughts = options.batch * options.tokens, options.batch * options.tokens * options.rationales
    for _, layer in model.base.base_model.named_modules():
        if isinstance(layer, torch.nn.Linear):
            yield thoughts * layout.row_tokens, layer.in_features, layer.out_features, 1, 1
            yield texts, layer.in_features, layer.out_features, 1, 1
            yield thoughts, layer.in_features, layer.out_features, options.thought_tokens + 1, 0
    learned = texts + thoughts * (options.thought_tokens + options.lookahead)
    chunks, sampled = learned / HEAD_ROWS, thoughts * options.thought_tokens / HEAD_ROWS
    yield HEAD_ROWS, options.hidden, options.vocab, chunks + sampled, chunks


def useful_flops(model: QuietStarForCausalLM, options: argparse.Namespace) -> float:
    """Operations of one training step that the method needs."""
    linear = sum(2 * m * i * o * (forward + 2 * backward) for m, i, o, forward, backward in products(model, options))
    layout = Layout(options.thought_tokens, options.lookahead)
    text, thoughts = options.tokens, options.tokens * options.rationales
    # pairs of a query and a key: of the text with itself, of thoughts with half the text, of thoughts with themselves
    row, sampled = layout.row_tokens, options.thought_tokens + 1
    learned = text * text / 2 + thoughts * (row * text / 2 + row * (row + 1) / 2)
    only_forward = thoughts * (sampled * text / 2 + sampled * (sampled + 1) / 2)
    attention = 4 * options.hidden * options.layers * options.batch * (3 * learned + only_forward)
    return linear + attention


def gemm_rates(model: QuietStarForCausalLM, options: argparse.Namespace, measured: dict) -> dict:
    """Operations a second of the step's matrix products, run alone, and of a 2048-cube."""
    cube = 2 * 2048**3 / product_seconds(2048, 2048, 2048, options)
    if options.what == "generate":
        return {"gemm_2048_flops_per_second": cube}
    work, seconds = 0.0, 0.0
    shapes: dict[tuple[int, int, int], float] = {}
    for rows, inputs, outputs, forward, backward in products(model, options):
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
