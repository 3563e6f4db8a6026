"""Think: sample a thought after every position of every text at once (paper, section 4.2).

All B * R * P thoughts advance together, one token a pass, without a graph. A draw depends on the seed and on the
text, position, thought and step it is for, on nothing else: not on the batch or on what else is sampled in it.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.thought.attention import OwnTokens, TextView
from pipeline.thought.decoder import Decoder

BANNED_LOGIT = -1e10


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn: temperature 0 is greedy."""

    temperature: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Thoughts:
    """Sampled ids (B, R, P, K) and the entropy in nats of the distributions they were drawn from (B, R, P, K)."""

    ids: Tensor
    entropy: Tensor


@torch.no_grad()
def sample_thoughts(
    decoder: Decoder,
    text: TextView,
    positions: Tensor,
    start_embedding: Tensor,
    rationales: int,
    thought_tokens: int,
    banned: list[int],
    sampling: Sampling,
    text_keys: Tensor,
) -> Thoughts:
    """Sample ``thought_tokens`` (K) tokens for each of ``rationales`` (R) thoughts at ``positions`` (P,).

    ``start_embedding`` (D,) is the start-of-thought token's; ``banned`` ids are never sampled; ``text_keys`` (B,)
    name the texts in the draws.
    """
    shape = (text.position_ids.shape[0], rationales, len(positions))
    places = text.position_ids[:, positions]
    own = OwnTokens(thought_tokens)
    embeddings = start_embedding.expand(*shape, 1, -1)
    ids, entropies = [], []
    for step in range(thought_tokens):
        hidden = decoder.run_rows(embeddings, text, positions, first=step, own=own)
        logits = ban(decoder.predict(hidden[..., 0, :]), banned)
        distribution = logits.log_softmax(-1)
        entropies.append(-(distribution.exp() * distribution).sum(-1))
        drawn = draw(logits, sampling.temperature, uniforms(sampling.seed, text_keys, rationales, places, step))
        ids.append(drawn)
        embeddings = decoder.embed(drawn).unsqueeze(-2)
    return Thoughts(torch.stack(ids, -1), torch.stack(entropies, -1))


def ban(logits: Tensor, banned: list[int]) -> Tensor:
    """The logits (..., V), in at least float32, with those of ``banned`` ids replaced by -1e10."""
    logits = at_least_float32(logits)
    if not banned:
        return logits
    return logits.index_fill(-1, torch.tensor(banned, device=logits.device), BANNED_LOGIT)


def at_least_float32(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def draw(logits: Tensor, temperature: float, uniform: Tensor) -> Tensor:
    """Ids (...) drawn from ``logits`` (..., V) by inverting the distribution function at ``uniform`` (...)."""
    if temperature == 0:
        return logits.argmax(-1)
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)
    total = cumulative[..., -1]
    # strictly below the total, whatever it was rounded to: a token of probability 0 is never drawn
    target = torch.minimum(uniform.to(total.dtype) * total, total * (1 - 2**-22))
    drawn = torch.searchsorted(cumulative, target.unsqueeze(-1), right=True).squeeze(-1)
    return drawn.clamp(max=logits.shape[-1] - 1)  # logits that are not numbers are found out by their loss


def uniforms(seed: int, text_keys: Tensor, rationales: int, position_ids: Tensor, step: int) -> Tensor:
    """Numbers (B, R, P) in [0, 1), each a hash of the seed and of its own text, thought, position and step.

    ``position_ids`` (B, P) count a text's own tokens, so padding does not change a draw.
    """
    device = position_ids.device
    state = _scramble(text_keys.to(device) + _scramble(torch.tensor(seed, device=device)))
    state = _scramble(state[:, None] + torch.arange(rationales, device=device))
    state = _scramble(state[:, :, None] + position_ids[:, None])
    state = _scramble(state + step)
    return (state & (2**24 - 1)).double() / 2**24


def _scramble(x: Tensor) -> Tensor:
    """A 64-bit mixing function (the finaliser of splitmix64), in int64 arithmetic that wraps around."""
    x = x.long() + -7046029254386353131
    x = (x ^ _shift(x, 30)) * -4658895280553007687
    x = (x ^ _shift(x, 27)) * -7723592293110705685
    return x ^ _shift(x, 31)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift: torch's own keeps the sign."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)
