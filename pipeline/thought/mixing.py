"""The mixing head: how much of a prediction comes from the thought (paper, section 4.3)."""

import torch
from torch import Tensor, nn


class MixingHead(nn.Sequential):
    """A weight for the state with the thought, from both states; any real number, as the last layer is not squashed."""

    def __init__(self, hidden_size: int):
        super().__init__(
            nn.Linear(2 * hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1, bias=False),
        )

    @torch.no_grad()
    def start_at(self, weight: float) -> None:
        """Give every pair of states this ``weight``: with 0, the prediction is that without thoughts until training."""
        nn.init.zeros_(self[-1].weight)
        if weight:
            nn.init.zeros_(self[-3].weight)
            nn.init.ones_(self[-3].bias)
            nn.init.constant_(self[-1].weight, weight / self[-1].in_features)

    def mix(self, base: Tensor, talk: Tensor) -> tuple[Tensor, Tensor]:
        """``(1 - w) base + w talk`` (..., D), and the weight w (...).

        As the LM head is linear, mixing hidden states equals mixing the two predictions' logits.
        """
        weight = self(torch.cat([base.expand_as(talk), talk], dim=-1)).to(talk.dtype)  # autocast may have lowered it
        return torch.lerp(base.expand_as(talk), talk, weight), weight.squeeze(-1)
