"""How a token is drawn from the model's distribution.

A random draw depends on the seed and on its own text, thought, position and step alone, so it is the same in any batch,
shard or slice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .head import Head, ban, chunk_rows


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 is greedy.

    ``top_k``: only among the k likeliest tokens. ``top_p``: only among the likeliest that together have at least this
    probability (Holtzman et al. 2020), after ``top_k``. Raises ValueError for a number out of its range.
    """

    temperature: float = 1.0
    seed: int = 0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}, but must be a number of at least 0")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k is {self.top_k}, but must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but must be above 0 and at most 1")

    def chances(self, text_keys: Tensor, rationales: int, position_ids: Tensor, step: int) -> Tensor:
        """`uniforms` (B, R, P) of this seed; zeros where greedy draws do not need them."""
        if self.temperature == 0:
            return torch.zeros(len(position_ids), rationales, position_ids.shape[1], device=position_ids.device)
        return uniforms(self.seed, text_keys, rationales, position_ids, step)


@dataclass(frozen=True)
class Thoughts:
    """Sampled ids (B, R, P, K), and the entropies in nats (B, R, P, K) of their distributions at temperature 1.

    ``lengths`` (B, R, P): the tokens that a thought keeps, K or those before the draw that ended it. After that draw
    its id is repeated, and the entropy is 0.
    """

    ids: Tensor
    entropy: Tensor
    lengths: Tensor

    def each(self, change: Callable[[Tensor], Tensor]) -> "Thoughts":
        """The same with a ``change`` made to each tensor."""
        return Thoughts(change(self.ids), change(self.entropy), change(self.lengths))

    @property
    def mean_entropy(self) -> Tensor:
        """The mean entropy (B, R, P) of each thought's own draws, the one that ended it included."""
        return self.entropy.sum(-1) / (self.lengths + 1).clamp(max=self.ids.shape[-1])


def sample(
    head: Head, hidden: Tensor, banned: Sequence[int], sampling: Sampling, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """Ids (...) drawn after hidden states (..., D) with ``uniform`` numbers (...), and the entropies (...) in nats.

    It works in chunks, so that the logits of all rows never exist at once.
    """
    size = chunk_rows(head.weight)
    drawn, entropies = [], []
    for rows, chances in zip(hidden.flatten(0, -2).split(size), uniform.flatten().split(size), strict=True):
        logits = ban(head.logits(rows), banned)
        probabilities = logits.softmax(-1)
        entropies.append(entropy(logits, probabilities))
        drawn.append(draw(logits, probabilities, sampling, chances))
    return torch.cat(drawn).view(uniform.shape), torch.cat(entropies).view(uniform.shape)


@torch.no_grad()
def entropies(head: Head, hidden: Tensor) -> Tensor:
    """Entropies (...) in nats of the predictions from hidden states (..., D), in chunks as in `sample`."""
    chunks = (ban(head.logits(rows), []) for rows in hidden.flatten(0, -2).split(chunk_rows(head.weight)))
    return torch.cat([entropy(logits) for logits in chunks]).view(hidden.shape[:-1])


def entropy(logits: Tensor, probabilities: Tensor | None = None) -> Tensor:
    """Entropy in nats (M,) of predictions by ``logits`` (M, V); ``probabilities``: their softmax, if it is known."""
    probabilities = logits.softmax(-1) if probabilities is None else probabilities
    log_sum = logits.amax(-1) - probabilities.amax(-1).log()
    return log_sum - torch.linalg.vecdot(probabilities, logits)


def draw(logits: Tensor, probabilities: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    """Ids (M,) drawn from ``logits`` (M, V) by inverting the distribution function at ``uniform`` (M,).

    ``probabilities`` (M, V): their softmax, at temperature 1.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    if sampling.temperature != 1:
        probabilities = (logits / sampling.temperature).softmax(-1)
    return invert(truncate(probabilities, sampling), uniform)


def truncate(probabilities: Tensor, sampling: Sampling) -> Tensor:
    """Set ``probabilities`` (M, V) outside ``sampling``'s top k and top p to 0; the rest no longer sums to 1."""
    if sampling.top_k is not None and sampling.top_k < probabilities.shape[-1]:
        least = probabilities.topk(sampling.top_k).values[:, -1:]
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered = probabilities.sort(-1, descending=True).values
        before = ordered.cumsum(-1) - ordered
        kept = before < sampling.top_p * ordered.sum(-1, keepdim=True)
        least = ordered.masked_fill(~kept, math.inf).amin(-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0)
    return probabilities


def invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """For each row of ``weights`` (M, V), at least 0, the first index (M,) whose running sum exceeds that share of all.

    It searches among blocks of about sqrt(V) weights, then within one, so no running sum is as long as a row. A weight
    of 0 is never chosen. NaN gives some index: the loss, which is NaN too, reports it.
    """
    rows, vocabulary = weights.shape
    size = math.isqrt(vocabulary)
    whole = vocabulary // size * size
    sums = weights[:, :whole].unflatten(1, (-1, size)).sum(-1)
    if whole < vocabulary:
        sums = torch.cat([sums, weights[:, whole:].sum(-1, keepdim=True)], dim=1)
    block, rest = _find(sums, uniform.to(weights.dtype).unsqueeze(1) * sums.sum(-1, keepdim=True))
    columns = block * size + torch.arange(size, device=weights.device)
    beyond, columns = columns >= vocabulary, columns.clamp(max=vocabulary - 1)
    inside = weights.gather(1, columns).masked_fill(beyond, 0)
    return columns.gather(1, _find(inside, rest)[0]).squeeze(1)


def _find(weights: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The first index (M, 1) whose running sum exceeds ``target`` (M, 1), and the target less the sum before it.

    A target that reaches the total through rounding means the last weight above 0.
    """
    running = weights.cumsum(-1).cummax(-1).values  # a parallel sum may fall by a rounding error
    total = running[:, -1:]
    target = torch.minimum(target, torch.nextafter(total, torch.zeros_like(total)))
    index = torch.searchsorted(running, target, right=True).clamp(max=weights.shape[1] - 1)
    before = torch.where(index > 0, running.gather(1, (index - 1).clamp(min=0)), 0)
    return index, target - before


def uniforms(seed: int, text_keys: Tensor, rationales: int, position_ids: Tensor, step: int) -> Tensor:
    """Numbers (B, R, P) in [0, 1), each a hash of the seed, text, thought, position and step.

    ``position_ids`` (B, P) count a text's real tokens, so padding does not change a draw.
    """
    device = position_ids.device
    state = _scramble(text_keys.to(device) + _scramble(torch.tensor(seed, device=device)))
    state = _scramble(state[:, None] + torch.arange(rationales, device=device))
    state = _scramble(state[:, :, None] + position_ids[:, None])
    state = _scramble(state + step)
    return (state & (2**24 - 1)).double() / 2**24


def _scramble(x: Tensor) -> Tensor:
    """The 64-bit finaliser of splitmix64, in int64 arithmetic, which wraps around."""
    x = x.long() + -7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift; torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
