"""Learn: the losses, the reward of a thought and REINFORCE (paper, section 4.4; method.md, "Losses")."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pipeline.thought.layout import ahead
from pipeline.thought.sampler import at_least_float32, ban

IGNORED = -100
CHUNK_LOGITS = 2**25  # logits held at once by token_nll: 128 MiB in float32

Predict = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Losses:
    """The parts of the loss. Per-token terms are in nats and carry no gradient; ignored targets are 0.

    ``total``, ``base``, ``talk``, ``policy``: scalars. ``base_nll`` (B, N); ``talk_nll`` (B, R, N, A);
    ``reward`` and ``advantage`` (B, R, N-1-A); ``log_probs`` (B, R, N-1-A, K).
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


def lookahead_targets(labels: Tensor, lookahead: int) -> Tensor:
    """Targets (B, N, A): x_{i+1+k} for k < A, ``IGNORED`` past the end, of ``labels`` (B, N)."""
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORED)
    return ahead(following, lookahead, fill=IGNORED)


def token_nll(predict: Predict, hidden: Tensor, targets: Tensor, vocabulary: int) -> Tensor:
    """Cross-entropy in nats (...), 0 where ignored, of ``targets`` (...) given ``hidden`` (..., D).

    The LM head runs on chunks of rows and, with gradients, again in the backward pass, so that the logits of all rows
    never exist at once.
    """
    rows, wanted = hidden.flatten(0, -2), targets.flatten()
    size = max(1, CHUNK_LOGITS // vocabulary)
    if len(rows) <= size:
        return _nll(predict, rows, wanted).view(targets.shape)
    chunks = [
        checkpoint(_nll, predict, some, ids, use_reentrant=False)
        if torch.is_grad_enabled()
        else _nll(predict, some, ids)
        for some, ids in zip(rows.split(size), wanted.split(size), strict=True)
    ]
    return torch.cat(chunks).view(targets.shape)


def _nll(predict: Predict, hidden: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(at_least_float32(predict(hidden)), targets, ignore_index=IGNORED, reduction="none")


def mean_of_targets(nll: Tensor, targets: Tensor, dim: tuple[int, ...]) -> Tensor:
    """The mean of ``nll`` over ``dim``, counting only targets that are not ignored; 0 where there is none."""
    return nll.sum(dim) / (targets != IGNORED).sum(dim).clamp(min=1)


def rewarded_positions(tokens: int, lookahead: int) -> int:
    """How many positions, from the first on, have all their A true tokens and a reward: N-1-A, or none."""
    return max(0, tokens - 1 - lookahead)


def thought_rewards(base_nll: Tensor, talk_nll: Tensor) -> Tensor:
    """How much likelier a thought made its next A tokens: R_i = sum over k of base_nll[i+k] - talk_nll[i, k].

    From ``base_nll`` (B, N) and ``talk_nll`` (B, R, N, A) to (B, R, N-1-A).
    """
    tokens, lookahead = talk_nll.shape[-2:]
    base = ahead(base_nll, lookahead, fill=0.0).unsqueeze(1)
    return (base - talk_nll).sum(-1)[:, :, : rewarded_positions(tokens, lookahead)].detach()


def advantages(rewards: Tensor) -> Tensor:
    """Rewards (B, R, ...) less their mean over a position's thoughts, negative ones dropped; no mean if R = 1."""
    if rewards.shape[1] > 1:
        rewards = rewards - rewards.mean(1, keepdim=True)
    return rewards.clamp(min=0)


def thought_log_probs(
    predict: Predict, hidden: Tensor, ids: Tensor, banned: list[int], temperature: float, vocabulary: int
) -> Tensor:
    """Log-probabilities (...) of the sampled ``ids`` (...) given ``hidden`` (..., D), at REINFORCE's temperature."""
    return -token_nll(lambda h: ban(predict(h), banned) / temperature, hidden, ids, vocabulary)


def combine(base_nll: Tensor, talk_nll: Tensor, log_probs: Tensor, labels: Tensor, policy_weight: float) -> Losses:
    """The whole loss from its per-token parts: 0.5 base + 0.5 talk + ``policy_weight`` * REINFORCE.

    ``log_probs`` (B, R, N-1-A, K) carry the policy's gradient; ``labels`` (B, N) say which targets are ignored.
    """
    targets = lookahead_targets(labels, talk_nll.shape[-1])
    base = mean_of_targets(base_nll, targets[..., 0], dim=(0, 1))
    talk = mean_of_targets(talk_nll, targets.unsqueeze(1).expand_as(talk_nll), dim=(0, 1, 2)).mean()
    reward = thought_rewards(base_nll, talk_nll)
    advantage = advantages(reward)
    policy = -(advantage.unsqueeze(-1) * log_probs).sum() / max(log_probs.numel(), 1)  # 0 where none is rewarded
    return Losses(
        total=0.5 * base + 0.5 * talk + policy_weight * policy,
        base=base.detach(),
        talk=talk.detach(),
        policy=policy.detach(),
        base_nll=base_nll.detach(),
        talk_nll=talk_nll.detach(),
        reward=reward,
        advantage=advantage,
        log_probs=log_probs.detach(),
    )
