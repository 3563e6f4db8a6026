"""Quiet-STaR with a learned value where the other thoughts of a position are: one thought is enough."""

from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig

from .head import HeadLosses
from .objective import Counts, SliceLosses, SliceStates
from .quiet_star import QuietStar


class Value(QuietStar):
    """advantage = r - V(h), with V(h) from the text's state h at the position, not from the thought; it starts at 0.

    V learns by the mean of (r - V)^2, a part of the loss of its own that no gradient leaves.
    """

    def __init__(self, config: PretrainedConfig):
        super().__init__(config)
        self.inner = nn.Linear(config.hidden_size, config.hidden_size)
        self.outer = nn.Parameter(torch.zeros(config.hidden_size))

    def value(self, states: SliceStates) -> Tensor:
        """V (B, 1, p)."""
        return (self.inner(states.text[states.at[..., 0]]).relu() @ self.outer).unsqueeze(1)

    def advantages(self, worth: Tensor, states: SliceStates) -> Tensor:
        """What each thought is worth more than the value says; of either sign."""
        return (worth - self.value(states).detach()) * states.rewarded.unsqueeze(1)

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        """See `Objective.forward`."""
        losses = super().forward(states, counts, head)
        error = (self.worth(losses.reward, states) - self.value(states)) * states.rewarded.unsqueeze(1)
        part = error.square().sum() / (counts.rewards * error.shape[1]).clamp(min=1)
        return replace(losses, parts=losses.parts | {"value": part})
