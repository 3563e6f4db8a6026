"""The useful work of a training step, in floating-point operations.

That is 2 operations per weight and row forward and 4 backward, for all rows of the method, whether or not the engine
finds a way round some of them; and attention over half the text (what a position sees on average) and over the thought.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pipeline.models.shape import Shape
from pipeline.thought.layout import Layout

if TYPE_CHECKING:  # the benchmark runs on the GPU's machine, which has no omegaconf
    from pipeline.params import Thinking, Train

HEAD_ROWS = 512  # that the head works on at a time
# dense operations a second in bfloat16, by a part of the device's name; the first that fits (NVIDIA's data sheets)
PEAKS = {
    "B200": 2.25e15,
    "H200": 9.89e14,
    "H100 PCIe": 7.56e14,
    "H100": 9.89e14,
    "A100": 3.12e14,
    "L40S": 3.62e14,
    "L4": 1.21e14,
    "RTX 4090": 1.65e14,
    "RTX 3090": 7.1e13,
}


@dataclass(frozen=True)
class Step:
    """A forward and backward pass: B texts of N tokens, R thoughts of K tokens at a share of them, lookahead A."""

    texts: int
    tokens: int
    rationales: int
    thought_tokens: int
    lookahead: int
    share: float = 1.0

    @property
    def row_tokens(self) -> int:
        """T: start token, thought, end token and the true tokens after it."""
        return Layout(self.thought_tokens, self.lookahead).row_tokens

    @property
    def positions(self) -> int:
        return self.texts * self.tokens

    @property
    def thoughts(self) -> int:
        """At a share of the tokens that have a next one."""
        return round(self.texts * (self.tokens - 1) * self.share) * self.rationales


def thinking_share(thinking: "Thinking", tokens: float) -> float | None:
    """The share of the positions of texts of ``tokens`` tokens that think; None after a marker: the text says where."""
    shares = {"every": 1.0, "one": 1 / tokens, "marker": None}
    return shares.get(thinking.where, thinking.share)


def learned_rank(train: "Train") -> int | None:
    """The ``rank`` of `pass_flops` in this training."""
    return {"whole": None, "lora": train.lora.rank, "frozen": 0}[train.adapt]


def peak_of(device: str) -> float | None:
    """The operations a second that the device of this name can do, by `PEAKS`; None if it is not known."""
    return next((peak for part, peak in PEAKS.items() if part in device), None)


def products(shape: Shape, step: Step) -> Iterator[tuple[float, int, int, float, float]]:
    """The step's matrix products: (rows, inputs, outputs, times forward, times backward)."""
    for inputs, outputs in shape.linears:
        yield step.thoughts * step.row_tokens, inputs, outputs, 1, 1
        yield step.positions, inputs, outputs, 1, 1
        yield step.thoughts, inputs, outputs, step.thought_tokens, 0  # sampling
    learned = step.positions + step.thoughts * (step.thought_tokens + step.lookahead)
    chunks, sampled = learned / HEAD_ROWS, step.thoughts * step.thought_tokens / HEAD_ROWS
    yield HEAD_ROWS, shape.hidden, shape.vocab, chunks + sampled, chunks


def pass_flops(shape: Shape, step: Step, rank: int | None = None, backward: bool = True) -> float:
    """Operations of a pass. With a ``rank`` only adapters are trained, counted on all linear layers (0: none)."""

    def linear(some: Shape, gradients: int) -> float:
        return sum(2 * m * i * o * (there + gradients * back) for m, i, o, there, back in products(some, step))

    text, thoughts = step.tokens, step.thoughts / step.texts
    # pairs of a query and a key: of the text with itself, of thoughts with half the text, of thoughts with themselves
    row, sampled = step.row_tokens, step.thought_tokens
    learned = text * text / 2 + thoughts * (row * text / 2 + row * (row + 1) / 2)
    only_forward = thoughts * (sampled * text / 2 + sampled * (sampled + 1) / 2)
    attention = 4 * shape.queries * shape.layers * step.texts * ((3 if backward else 1) * learned + only_forward)
    if not backward:
        return linear(shape, gradients=0) + attention
    if rank is None:
        return linear(shape, gradients=2) + attention
    adapters = [small for inputs, outputs in shape.linears for small in ((inputs, rank), (rank, outputs))]
    return linear(replace(shape, linears=tuple(adapters), vocab=0), 2) + linear(shape, gradients=1) + attention


def reading_flops(shape: Shape, tokens: float, span: int) -> float:
    """Operations of reading ``tokens`` tokens in texts of ``span``, with the head at each token."""
    return tokens * (2 * (shape.body + shape.hidden * shape.vocab) + 4 * shape.queries * shape.layers * span / 2)
