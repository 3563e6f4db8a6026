"""What every objective shares: its inputs, what its means are taken over, and its result."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from .head import IGNORED, HeadLosses
from .layout import ahead

SAMPLED, PAUSES, NOTHING = "sampled", "pauses", "nothing"  # what the model puts before each prediction


class Counts(NamedTuple):
    """What a step's means are taken over, as integers; add up those of micro-batches and processes (`sum_counts`).

    ``targets`` (A,): true tokens that are predicted at each distance. ``thoughts`` (): rewarded positions, B * (N-1-A),
    padding included, not times R. For the log, without padding: ``tokens`` () and rewarded positions, ``rewards`` ().
    """

    targets: Tensor
    thoughts: Tensor
    tokens: Tensor
    rewards: Tensor


def counts_of(labels: Tensor, lookahead: int) -> Counts:
    """The `Counts` of the texts with these ``labels`` (B, N)."""
    rewarded = labels[:, : rewarded_positions(labels.shape[1], lookahead)]
    return Counts(
        targets=(lookahead_targets(labels, lookahead) != IGNORED).sum((0, 1)),
        thoughts=torch.tensor(rewarded.numel(), device=labels.device),
        tokens=(labels != IGNORED).sum(),
        rewards=(rewarded != IGNORED).sum(),
    )


def sum_counts(parts: Iterable[Counts]) -> Counts:
    """Sum the counts of several micro-batches."""
    return Counts(*map(sum, zip(*parts, strict=True)))


def lookahead_targets(labels: Tensor, lookahead: int) -> Tensor:
    """Targets (B, N, A): x_{i+1+k} for k < A, ``IGNORED`` past the end, of ``labels`` (B, N)."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return ahead(following, lookahead, fill=IGNORED)


def rewarded_positions(tokens: int, lookahead: int) -> int:
    """The number of rewarded positions, N-1-A or 0. N-A positions have all A true tokens; the last gets no reward."""
    return max(0, tokens - 1 - lookahead)


@dataclass(frozen=True)
class SliceStates:
    """The hidden states of a slice of p positions, q of which are rewarded, and the true tokens that they predict.

    ``base`` (B, p + A-1, D): states of the text pass at these positions and at the A-1 after them, whose losses the
    last rewards need (fewer at the end of the text). ``targets`` (B, p + A-1, A): `lookahead_targets` at the same.
    ``mixed`` (B, R, p, A, D): states after the thoughts, mixed with the text's by the mixing ``weight`` (B, R, p, A).
    ``thinking`` (B, R, q, K, D): the states that gave the tokens of the thoughts, ``ids`` (B, R, q, K), IGNORED after
    the one that ended a thought. Pauses have no ids, and without thoughts there is nothing but ``base`` and
    ``targets``. ``sampled``: whether the model drew the ids itself, now, rather than being given them.
    ``old_log_probs`` (B, R, q, K): log-probabilities from an earlier pass over the same thoughts, for inner epochs; 0
    where that pass sampled a thought and gave it no advantage, None in the first pass.
    """

    base: Tensor
    targets: Tensor
    mixed: Tensor | None = None
    weight: Tensor | None = None
    thinking: Tensor | None = None
    ids: Tensor | None = None
    sampled: bool = False
    old_log_probs: Tensor | None = None


@dataclass(frozen=True)
class Losses:
    """The loss of a training step, or of a slice of its positions, and what it was made from; in nats.

    ``parts``: the terms of the loss by name, weighted; ``total`` is their sum. Only ``total`` has a gradient, unless
    the parts were asked for apart (`step.Engine`). ``base``, ``talk`` and ``policy``: the means, not weighted.
    By token: ``base_nll`` (B, N) and ``talk_nll`` (B, R, N, A), the cross-entropies without and with the thought, 0 for
    ignored targets, and ``weight`` (B, R, N, A), the mixing weight. By thought, at the rewarded positions: ``reward``
    and ``advantage`` (B, R, N-1-A), and the ``log_probs`` (B, R, N-1-A, K) of its tokens, 0 after its end, and
    where a thought that was sampled now has no advantage. R is 1 for pauses and 0 without thoughts.
    """

    total: Tensor
    parts: dict[str, Tensor]
    base: Tensor
    talk: Tensor
    policy: Tensor
    base_nll: Tensor
    talk_nll: Tensor
    weight: Tensor
    reward: Tensor
    advantage: Tensor
    log_probs: Tensor


def join(slices: Sequence[Losses], total: Tensor, parts: dict[str, Tensor]) -> Losses:
    """Concatenate the values of a step's slices. ``total`` and ``parts`` are the whole step's, with gradients."""
    by_token = {f.name: [getattr(one, f.name) for one in slices] for f in fields(Losses)[5:]}
    return Losses(
        total=total,
        parts=parts,
        base=sum(one.base for one in slices),
        talk=sum(one.talk for one in slices),
        policy=sum(one.policy for one in slices),
        **{name: torch.cat(values, dim=1 if name == "base_nll" else 2) for name, values in by_token.items()},
    )


class Objective(nn.Module):
    """A loss, computed for a slice of positions. A new one is a file with a subclass, and an entry in `methods`.

    ``thoughts``: SAMPLED thoughts, learned PAUSES or NOTHING before each prediction. ``trains``: False for an arm that
    takes no step. ``mixing``: the mixing weight at the start. Parameters that an objective creates (a learned value,
    say) are trained and saved with the model's.
    """

    thoughts = SAMPLED
    trains = True
    mixing = 0.0

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> Losses:
        """The slice's losses. Every mean is over the whole step's ``counts``, so that slices' losses add up."""
        raise NotImplementedError
