"""The work of a training step, in floating-point operations.

Useful work counts 2 operations a weight and row forward and 4 backward, for all rows that the method has, whether or
not the engine finds a way round some of them, and attention over the half of the text that a position sees on average
and over the thought itself.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from pipeline.plan.shape import Shape
from pipeline.thought.layout import Layout

HEAD_ROWS = 512  # that the head works on at a time


@dataclass(frozen=True)
class Step:
    """One forward and backward pass: B texts of N tokens, R thoughts of K tokens at each, lookahead A."""

    texts: int
    tokens: int
    rationales: int
    thought_tokens: int
    lookahead: int

    @property
    def row_tokens(self) -> int:
        """T, start, thought, end and the true tokens after it."""
        return Layout(self.thought_tokens, self.lookahead).row_tokens

    @property
    def positions(self) -> int:
        return self.texts * self.tokens

    @property
    def thoughts(self) -> int:
        return self.positions * self.rationales


def products(shape: Shape, step: Step) -> Iterator[tuple[float, int, int, float, float]]:
    """The step's matrix products: rows, inputs, outputs, times forward, times backward."""
    for inputs, outputs in shape.linears:
        yield step.thoughts * step.row_tokens, inputs, outputs, 1, 1
        yield step.positions, inputs, outputs, 1, 1
        yield step.thoughts, inputs, outputs, step.thought_tokens + 1, 0
    learned = step.positions + step.thoughts * (step.thought_tokens + step.lookahead)
    chunks, sampled = learned / HEAD_ROWS, step.thoughts * step.thought_tokens / HEAD_ROWS
    yield HEAD_ROWS, shape.hidden, shape.vocab, chunks + sampled, chunks


def training_flops(shape: Shape, step: Step) -> float:
    """Operations of one pass of Quiet-STaR training that the method needs."""
    return _linear_flops(shape, step, backward=2) + _attention_flops(shape, step, backward=2)


def adapting_flops(shape: Shape, step: Step, rank: int) -> float:
    """The same on frozen weights, which take no gradients, with adapters of ``rank`` on all linear layers; 0: none."""
    adapters = [small for i, o in shape.linears for small in ((i, rank), (rank, o))]
    own = _linear_flops(replace(shape, linears=tuple(adapters), vocab=0), step, backward=2)
    return own + _linear_flops(shape, step, backward=1) + _attention_flops(shape, step, backward=2)


def watching_flops(shape: Shape, step: Step) -> float:
    """The same without the backward pass: held-out texts that training is watched on."""
    return _linear_flops(shape, step, backward=0) + _attention_flops(shape, step, backward=0)


def _linear_flops(shape: Shape, step: Step, backward: int) -> float:
    """``backward``: operations backward for each forward one."""
    return sum(2 * m * i * o * (there + backward * back) for m, i, o, there, back in products(shape, step))


def _attention_flops(shape: Shape, step: Step, backward: int) -> float:
    text, thoughts = step.tokens, step.tokens * step.rationales
    # pairs of a query and a key: of the text with itself, of thoughts with half the text, of thoughts with themselves
    row, sampled = step.row_tokens, step.thought_tokens + 1
    learned = text * text / 2 + thoughts * (row * text / 2 + row * (row + 1) / 2)
    only_forward = thoughts * (sampled * text / 2 + sampled * (sampled + 1) / 2)
    return 4 * shape.queries * shape.layers * step.texts * ((1 + backward) * learned + only_forward)


def reading_flops(shape: Shape, tokens: float, span: int) -> float:
    """Operations of reading ``tokens`` tokens of texts of ``span``, the head at each included."""
    return tokens * (2 * (shape.body + shape.hidden * shape.vocab) + 4 * shape.queries * shape.layers * span / 2)
