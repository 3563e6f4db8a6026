"""Where to think: a small head that reads the state without a thought and says whether one would help.

It learns beside any objective, in the same step: the step has computed how much the thoughts helped (an oracle, as it
needs the true tokens), and the head, which needs none, learns to foresee that. Think-at-Hard (arXiv 2511.08577) trains
such a head after the model, in a stage of its own.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import IGNORED
from .objective import Counts, Losses

MARGIN = 0.1  # nats a token that thoughts must gain to count as a help


class Gate(nn.Sequential):
    """A logit for "a thought helps here", from the state without one. That state gets no gradient from it."""

    def __init__(self, hidden_size: int):
        super().__init__(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (...) of states of the text pass (..., D)."""
        return super().forward(hidden.detach()).squeeze(-1)

    def loss(self, hidden: Tensor, targets: Tensor, losses: Losses, counts: Counts) -> Tensor:
        """The mean cross-entropy of the `helped` verdicts over the step's positions that think, in nats.

        ``hidden`` (B, N, D): states of the text pass; ``targets`` (B, N, A): `lookahead_targets`.
        """
        where = losses.thinks[:, : targets.shape[1]] & (targets[..., 0] != IGNORED)
        verdicts = helped(losses)[:, : targets.shape[1]].to(losses.base_nll.dtype)
        each = F.binary_cross_entropy_with_logits(self(hidden).to(verdicts.dtype), verdicts, reduction="none")
        return (each * where).sum() / counts.targets[0].clamp(min=1)


def helped(losses: Losses) -> Tensor:
    """Whether the mean thought of a position makes the next token likelier by more than `MARGIN` nats: (B, N)."""
    return (losses.without_nll - losses.talk_nll)[..., 0].mean(1) > MARGIN


def threshold_for(logits: Tensor, share: float) -> float:
    """The threshold above which this ``share`` of ``logits`` (n,) lies, where no two are equal."""
    falling = logits.sort(descending=True).values
    falling = torch.cat([falling, falling[-1:] - 1])
    return falling[round(share * len(logits))].item()
