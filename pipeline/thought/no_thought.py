"""Continued pretraining: the base model alone, on the same texts."""

from .objective import NOTHING, Objective


class NoThought(Objective):
    """The mean cross-entropy of x_{i+1}. The talk loss, that of the method's own prediction, is the same."""

    thoughts = NOTHING
