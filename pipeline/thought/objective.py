"""Learn: how much each prediction counts, the reward of a thought and REINFORCE (paper, section 4.4)."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .head import IGNORED
from .layout import ahead


@dataclass(frozen=True)
class Losses:
    """The parts of the loss. Per-token terms are in nats and carry no gradient; ignored targets are 0.

    ``total``, ``base``, ``talk``, ``policy``: scalars. ``base_nll`` (B, N); ``talk_nll`` (B, R, N, A);
    ``reward`` and ``advantage`` (B, R, N-1-A); ``log_probs`` (B, R, N-1-A, K), of
    sampled thoughts only where there is an advantage and else 0.
    """

    total: Tensor
    base: Tensor
    talk: Tensor
    policy: Tensor
    base_nll: Tensor
    talk_nll: Tensor
    reward: Tensor
    advantage: Tensor
    log_probs: Tensor


class Counts(NamedTuple):
    """What a step's means are taken over, as integers; a step's are the sums of its micro-batches' and processes'.

    ``targets`` (A,): true tokens that are predicted at each distance. ``thoughts`` (): positions whose thoughts are
    rewarded, B * (N-1-A). Of those that are not padding, which is what is logged: ``tokens`` () and ``rewards`` ().
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
    """Those of all texts, of parts of them."""
    return Counts(*map(sum, zip(*parts, strict=True)))


def lookahead_targets(labels: Tensor, lookahead: int) -> Tensor:
    """Targets (B, N, A): x_{i+1+k} for k < A, ``IGNORED`` past the end, of ``labels`` (B, N)."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return ahead(following, lookahead, fill=IGNORED)


def base_weights(targets: Tensor, counts: Counts, dtype: torch.dtype) -> Tensor:
    """What each base cross-entropy (B, N) counts in the base loss, their mean: of ``targets`` (B, N, A)."""
    real = (targets[..., 0] != IGNORED).to(dtype)
    return real / counts.targets[0].to(dtype).clamp(min=1)


def talk_weights(targets: Tensor, rationales: int, counts: Counts, dtype: torch.dtype) -> Tensor:
    """What each talk cross-entropy (B, R, N, A) counts in the talk loss, the mean over k of the means over the rest."""
    real = (targets != IGNORED).to(dtype)
    weights = real / (targets.shape[-1] * rationales * counts.targets.to(dtype).clamp(min=1))
    return weights.unsqueeze(1).expand(-1, rationales, -1, -1)


def rewarded_positions(tokens: int, lookahead: int) -> int:
    """How many positions, from the first on, have all their A true tokens and a reward: N-1-A, or none."""
    return max(0, tokens - 1 - lookahead)


def thought_rewards(base_nll: Tensor, talk_nll: Tensor) -> Tensor:
    """How much likelier a thought made its next A tokens: R_i = sum over k of base_nll[i+k] - talk_nll[i, k].

    From ``base_nll`` (B, P, A) at i + k and ``talk_nll`` (B, R, P, A) to (B, R, P).
    """
    return (base_nll.unsqueeze(1) - talk_nll).sum(-1)


def advantages(rewards: Tensor) -> Tensor:
    """Rewards (B, R, ...) less their mean over a position's thoughts, negative ones dropped; no mean if R = 1."""
    if rewards.shape[1] > 1:
        rewards = rewards - rewards.mean(1, keepdim=True)
    return rewards.clamp(min=0)
