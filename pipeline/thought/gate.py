"""Where to think: a small head that reads the state without a thought and foresees what one would gain.

It learns beside any objective, in the same step: the step has computed how much the thoughts helped (an oracle, as it
needs the true tokens), and the head, which needs none, learns to foresee that. Think-at-Hard (arXiv 2511.08577) trains
such a decider after the model, in a stage of its own, to tell yes from no. Here it predicts the gain itself: among
positions that help, those that help most come first, and one where thoughts do as much harm as good is worth nothing.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .head import IGNORED, exact_dtype
from .objective import Counts, Losses


class Gate(nn.Sequential):
    """The gain in nats that a thought brings the next token, from the state without one, which it gives no gradient."""

    def __init__(self, hidden_size: int):
        super().__init__(nn.Linear(hidden_size, hidden_size), nn.ReLU(), nn.Linear(hidden_size, 1))

    def forward(self, hidden: Tensor) -> Tensor:
        """Expected gains (...) at states of the text pass (..., D), in at least float32: bfloat16 ranks coarsely."""
        states, (inner, relu, outer) = hidden.detach().to(exact_dtype(hidden)), self
        if inner.weight.is_meta or outer.weight.is_meta:
            raise ValueError("the gate is offloaded (device_map), but it reads its weights itself: keep it on a device")
        with torch.autocast(states.device.type, enabled=False):
            states = relu(F.linear(states, inner.weight.to(states), inner.bias.to(states)))
            return F.linear(states, outer.weight.to(states), outer.bias.to(states)).squeeze(-1)

    def loss(self, hidden: Tensor, targets: Tensor, losses: Losses, counts: Counts) -> Tensor:
        """The mean squared error over the step's positions that think, each with the mean gain of its R thoughts.

        ``hidden`` (B, N, D): states of the text pass; ``targets`` (B, N, A): `lookahead_targets`.
        """
        where = losses.thinks[:, : targets.shape[1]] & (targets[..., 0] != IGNORED)
        gains = (losses.without_nll - losses.talk_nll)[..., 0].mean(1)[:, : targets.shape[1]]
        errors = self(hidden) - gains
        return (errors.square() * where).sum() / counts.targets[0].clamp(min=1)


def threshold_for(scores: Tensor, share: float) -> float:
    """The threshold above which this ``share`` of ``scores`` (n,) lies, where no two are equal."""
    falling = scores.sort(descending=True).values
    falling = torch.cat([falling, falling[-1:] - 1])
    return falling[round(share * len(scores))].item()
