"""Continued pretraining: the base model alone, on the same texts."""

from .head import IGNORED, HeadLosses, exact_dtype
from .objective import NOTHING, Counts, Losses, Objective, SliceStates


class NoThought(Objective):
    """The mean cross-entropy of x_{i+1}. The talk loss, that of the method's own prediction, is the same."""

    thoughts = NOTHING

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> Losses:
        """See `Objective.forward`. What belongs to thoughts is empty (R = 0)."""
        targets, exact = states.targets[..., 0], exact_dtype(states.base)
        weights = (targets != IGNORED).to(exact) / counts.targets[0].to(exact).clamp(min=1)
        loss, nll = head.cross_entropy("base", states.base, targets, weights)
        mean, none = (nll * weights).sum(), nll.new_zeros(len(targets), 0, 0, 0)
        return Losses(
            total=loss,
            parts={"base": loss},
            base=mean,
            talk=mean,
            policy=mean.new_zeros(()),
            base_nll=nll,
            talk_nll=none,
            weight=none,
            reward=none.flatten(2),
            advantage=none.flatten(2),
            log_probs=none,
        )
