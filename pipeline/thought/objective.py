"""What every objective shares: its inputs, what its means are taken over, and its result."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PretrainedConfig

from .head import IGNORED, HeadLosses, Mixed, exact_dtype
from .layout import ahead
from .places import Places, thinking

SAMPLED, PAUSES, NOTHING = "sampled", "pauses", "nothing"  # what the model puts before each prediction


class Counts(NamedTuple):
    """What a step's means are taken over, as integers; add up those of micro-batches and processes (`sum_counts`).

    ``tokens`` (): true next tokens. ``targets`` (A,): true tokens that are predicted after a thought, at each distance.
    ``thoughts`` (): rewarded positions, not times R: B * (N-1-A), padding included, where every position thinks (as in
    the paper's code). For the log, without padding: positions that think, ``thinking`` (), and are rewarded,
    ``rewards`` ().
    """

    tokens: Tensor
    targets: Tensor
    thoughts: Tensor
    thinking: Tensor
    rewards: Tensor

    @property
    def distances(self) -> Tensor:
        """How many distances have a target (), at least 1: near the end of a text the farther ones have none."""
        return (self.targets > 0).sum().clamp(min=1)


def counts_of(labels: Tensor, lookahead: int, thinks: Tensor | None = None) -> Counts:
    """The `Counts` of the texts with these ``labels`` (B, N), which think where ``thinks`` (B, N); None: everywhere."""
    targets = lookahead_targets(labels, lookahead)
    where = thinking(targets, thinks)
    rewarded = where[:, : rewarded_positions(labels.shape[1], lookahead)]
    return Counts(
        tokens=(targets[..., 0] != IGNORED).sum(),
        targets=((targets != IGNORED) & where.unsqueeze(-1)).sum((0, 1)),
        thoughts=torch.tensor(rewarded.numel(), device=labels.device) if thinks is None else rewarded.sum(),
        thinking=where.sum(),
        rewards=rewarded.sum(),
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
    """What is known of the thoughts at a slice of p positions of each text, and the true tokens after them.

    ``text`` (M, D): states of the text pass, and ``at`` (B, p, A): which of them are at these positions and at the A-1
    after each; ``live`` (M, D): the same states with their gradient. ``targets`` (B, p, A): `lookahead_targets`,
    IGNORED where a text has no thought in this slot.
    ``mixed``: the states after the thoughts, by themselves and mixed with the text's.
    ``rewarded`` (B, p): where thoughts are rewarded. ``thinking`` (B, R, p, K, D): the states that gave the tokens of
    the thoughts, ``ids`` (B, R, p, K), IGNORED after the one that ended a thought and where none is rewarded. Pauses
    have no ids. ``sampled``: whether the model drew the ids itself, now, rather than being given them.
    ``lengths`` (B, R, p): the tokens of each thought; 0 where thoughts cannot end themselves, and where none is
    rewarded. ``old_log_probs`` (B, R, p, K) and ``old_advantage`` (B, R, p): from an earlier pass over the same
    thoughts, for inner epochs; log-probabilities are 0 where that pass sampled a thought and gave it no advantage.
    None in the first pass.
    """

    text: Tensor
    live: Tensor
    at: Tensor
    targets: Tensor
    mixed: Mixed
    rewarded: Tensor
    thinking: Tensor
    ids: Tensor | None
    lengths: Tensor
    sampled: bool
    old_log_probs: Tensor | None
    old_advantage: Tensor | None


@dataclass(frozen=True)
class SliceLosses:
    """What the thoughts of a slice add to the loss: as in `Losses`, by slot (p) where that has positions."""

    parts: dict[str, Tensor]
    talk: Tensor
    policy: Tensor
    talk_nll: Tensor
    without_nll: Tensor
    weight: Tensor
    reward: Tensor
    rounding: Tensor
    advantage: Tensor
    log_probs: Tensor

    @property
    def total(self) -> Tensor:
        return sum(self.parts.values())


@dataclass(frozen=True)
class Losses:
    """The loss of a training step and what it was made from, in nats.

    ``parts``: the terms of the loss by name, weighted; ``total`` is their sum. Only ``total`` has a gradient, unless
    the parts were asked for apart (`step.Engine`). ``base``, ``talk`` and ``policy``: the means, not weighted.
    By token: ``base_nll`` (B, N), the cross-entropies of the next tokens without a thought; ``talk_nll`` (B, R, N, A)
    and ``without_nll`` (B, 1, N, A), those of the lookahead's with and without, and ``weight`` (B, R, N, A), the mixing
    weight: 0 for ignored targets and where nothing thinks. ``thinks`` (B, N): where thoughts are. By thought, at the
    rewarded positions: ``reward`` and ``advantage`` (B, R, N-1-A); ``rounding``, about how far rounding may have moved
    a reward; and ``log_probs`` (B, R, N-1-A, K) of its tokens, 0 after its end, and where a thought that was sampled
    now has no advantage. R is 1 for pauses and 0 without thoughts.
    """

    total: Tensor
    parts: dict[str, Tensor]
    base: Tensor
    talk: Tensor
    policy: Tensor
    base_nll: Tensor
    talk_nll: Tensor
    without_nll: Tensor
    weight: Tensor
    thinks: Tensor
    reward: Tensor
    rounding: Tensor
    advantage: Tensor
    log_probs: Tensor

    def plus(self, name: str, loss: Tensor, apart: bool) -> "Losses":
        """With one more part of the loss, which keeps a gradient of its own if parts are ``apart``."""
        return replace(self, total=self.total + loss, parts=self.parts | {name: loss if apart else loss.detach()})


def join(
    slices: Sequence[SliceLosses],
    places: Places,
    tokens: int,
    rewarded: int,
    total: Tensor,
    parts: dict[str, Tensor],
    base: Tensor,
    base_nll: Tensor,
) -> Losses:
    """The losses of a step from those of its slices, by position: 0 where nothing thinks. The rest is as in `Losses`.

    ``tokens`` is N, and the first ``rewarded`` positions are rewarded.
    """

    def by_position(name: str, count: int) -> Tensor:
        return places.spread(torch.cat([getattr(losses, name) for losses in slices], dim=2), count)

    return Losses(
        total=total,
        parts=parts,
        base=base,
        talk=sum(losses.talk for losses in slices),
        policy=sum(losses.policy for losses in slices),
        base_nll=base_nll,
        talk_nll=by_position("talk_nll", tokens),
        without_nll=by_position("without_nll", tokens),
        weight=by_position("weight", tokens),
        thinks=places.spread(places.real.unsqueeze(1), tokens)[:, 0],
        reward=by_position("reward", rewarded),
        rounding=by_position("rounding", rewarded),
        advantage=by_position("advantage", rewarded),
        log_probs=by_position("log_probs", rewarded),
    )


def without_thoughts(total: Tensor, parts: dict[str, Tensor], base: Tensor, base_nll: Tensor) -> Losses:
    """The losses of a step in which nothing thinks: the talk loss, that of the prediction, is the base loss."""
    none, nowhere = base_nll.new_zeros(len(base_nll), 0, 0, 0), torch.zeros_like(base_nll, dtype=torch.bool)
    by_token, by_thought = (base_nll, none, none, none, nowhere), (*[none.flatten(2)] * 3, none)
    return Losses(total, parts, base, base, torch.zeros_like(base), *by_token, *by_thought)


class Objective(nn.Module):
    """A loss: language modelling on whole texts, and what thoughts add, a slice of positions at a time.

    A new one is a file with a subclass, and an entry in `methods`. ``thoughts``: SAMPLED thoughts, learned PAUSES or
    NOTHING before each prediction. ``base_share``: the weight of language modelling. ``trains``: False for an arm that
    takes no step. ``mixing``: the mixing weight at the start; one that is not 0 is not learned. Parameters that an
    objective creates (a learned value, say) are trained and saved with the model's.
    """

    thoughts = SAMPLED
    base_share = 1.0
    trains = True
    mixing = 0.0

    def __init__(self, config: PretrainedConfig):
        super().__init__()
        self.config = config

    def language_modelling(
        self, hidden: Tensor, targets: Tensor, counts: Counts, head: HeadLosses
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The weighted mean cross-entropy of x_{i+1}, the mean, and each (B, N), without thoughts.

        ``hidden`` (B, N, D): states of the text pass, which predict ``targets`` (B, N).
        """
        weights = (targets != IGNORED).to(exact_dtype(hidden)) / counts.tokens.clamp(min=1)
        loss, nll = head.cross_entropy("base", hidden, targets, self.base_share * weights)
        return loss, (nll * weights).sum(), nll

    def exchange(self, ids: Tensor, real: Tensor) -> Tensor:
        """The thoughts (B, R, P, K) that the rows of each text read, from those ``ids`` (B, R, P, K) sampled after it.

        ``real`` (B, P): the slots that think. Here each text reads its own.
        """
        return ids

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        """What the slice's thoughts add. Every mean is over the whole step's ``counts``, so that slices add up."""
        raise NotImplementedError
