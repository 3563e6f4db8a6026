"""RLP, reinforcement as a pretraining objective (2025, arXiv 2510.01265)."""

import torch
from torch import Tensor

from .head import IGNORED, HeadLosses
from .objective import SliceStates
from .quiet_star import QuietStar, leave_one_out


class Rlp(QuietStar):
    """The policy term alone, with signed advantages and a clipped ratio; predictions are those after the thought alone.

    The paper's reward is taken over log p_ema(x) without a thought instead of log p(x): the same for all thoughts of a
    position, that cancels in their advantages. Base and talk loss are there to be logged.
    """

    base_share = talk_share = 0.0
    mixing = 1.0

    def advantages(self, worth: Tensor, states: SliceStates) -> Tensor:
        """R / (R - 1) (r - mean r), of the pass that sampled the thoughts."""
        return leave_one_out(worth) if states.old_advantage is None else states.old_advantage

    def policy(
        self, advantage: Tensor, states: SliceStates, terms: Tensor, head: HeadLosses
    ) -> tuple[Tensor, Tensor, Tensor]:
        """-min(ratio A, clip(ratio, 1 - e, 1 + e) A): see `QuietStar.policy`. The ratio is 1 in the first pass."""
        clip, worth = self.config.ratio_clip, advantage.unsqueeze(-1) * (states.ids != IGNORED)
        ratio = torch.ones_like(worth)
        if states.old_log_probs is not None:
            ratio = (self.score(torch.zeros_like(worth), states, head)[1] - states.old_log_probs).exp()
        gain = torch.minimum(ratio * worth, ratio.clamp(1 - clip, 1 + clip) * worth)
        # its derivative by log p: ratio A, or 0 where it is clipped
        slope = (ratio * worth).where(gain == ratio * worth, 0)
        part, log_probs = self.score(self.policy_weight / terms * slope, states, head)
        mean = -gain.sum() / terms
        return part - part.detach() + self.policy_weight * mean, mean, log_probs
