"""Pause tokens (Goyal et al. 2023, arXiv 2310.02226): Quiet-STaR with K learned tokens in the place of a thought."""

from .objective import PAUSES
from .quiet_star import QuietStar


class Pause(QuietStar):
    """Base and talk loss as they are. Nothing is sampled, so there is one row a position and no policy to learn."""

    thoughts = PAUSES
