"""The mixing head: how much of a prediction comes from the thought (paper, section 4.3)."""

import torch
from torch import Tensor, nn


class MixingHead(nn.Sequential):
    """A weight for the state with the thought, from both states; 0 (no thought) until it is trained.

    The last layer starts at zero and is not squashed: the weight is any real number.
    """

    def __init__(self, hidden_size: int):
        super().__init__(
            nn.Linear(2 * hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, hidden_size),
            nn.ReLU(),
            nn.Linear(hidden_size, 1, bias=False),
        )

    def mix(self, base: Tensor, talk: Tensor) -> tuple[Tensor, Tensor]:
        """``(1 - w) base + w talk`` (..., D), and the weight w (...).

        As the LM head is linear, mixing hidden states equals mixing the two predictions' logits.
        """
        weight = self(torch.cat([base.expand_as(talk), talk], dim=-1)).to(talk.dtype)  # autocast may have lowered it
        return torch.lerp(base.expand_as(talk), talk, weight), weight.squeeze(-1)
