"""Quiet-STaR with one cause removed at a time: what is left of a gain without it was not that cause's."""

import torch
from torch import Tensor

from .no_thought import NoThought
from .objective import SliceStates
from .quiet_star import QuietStar


class NoPolicy(QuietStar):
    """No REINFORCE term: the model learns to use thoughts, and nobody tells it which ones to write."""

    policy_weight = 0.0


class ShuffledReward(QuietStar):
    """Each position's thoughts get the advantages of another position: what an update does whatever they are worth."""

    def advantages(self, worth: Tensor, states: SliceStates) -> Tensor:
        """See `QuietStar.advantages`. They go around the rewarded positions that are computed together.

        None keeps its own; of one position alone they are 0.
        """
        advantages = super().advantages(worth, states)
        real = states.rewarded
        # seeded by the thoughts themselves, so that a resumed run draws the same order
        generator = torch.Generator().manual_seed(int(states.ids.sum()))
        order = torch.randperm(int(real.sum()), generator=generator).to(real.device)
        by_position = advantages.transpose(1, 2).clone()
        given = by_position[real]
        given[order] = given[order.roll(1)] if len(order) > 1 else torch.zeros_like(given)
        by_position[real] = given
        return by_position.transpose(1, 2)


class TrainedSwapped(NoPolicy):
    """Each text's rows read the thoughts of another text: what a second pass and a mixing head learn about the text.

    Nobody rewards thoughts: a reward would be for what a text's thought does to another text.
    """

    def exchange(self, ids: Tensor, real: Tensor) -> Tensor:
        """See `Objective.exchange`. The donor is the text before in the batch: its n-th thought for the n-th.

        Where it has fewer, its last. Texts in which nothing thinks give none. A text that thinks alone (as in a last
        batch of held-out texts) gets thoughts of its own other slots.
        """
        thinking = real.any(1).nonzero().squeeze(1)
        if len(thinking) < 2:
            return ids.roll(max(1, ids.shape[2] // 2), 2)
        donors = torch.arange(len(ids), device=ids.device)
        donors[thinking] = thinking.roll(1)
        number = (real.cumsum(1) - 1).clamp(min=0)  # (B, P), of a slot among its text's real ones
        last = (real.sum(1) - 1).clamp(min=0)[donors]
        real_first = (~real).int().argsort(dim=1, stable=True)[donors]
        slots = real_first.take_along_dim(torch.minimum(number, last.unsqueeze(1)), 1)
        return ids[donors].take_along_dim(slots[:, None, :, None], 2)


class Untrained(QuietStar):
    """Thoughts as they are at the start, trusted wholly: what the base model could think before it learned anything."""

    trains = False
    mixing = 1.0


class Before(NoThought):
    """The model before training."""

    trains = False
