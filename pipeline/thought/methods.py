"""The methods by the names that a configuration gives them: each is an objective and what a thought is to it."""

from .no_thought import NoThought
from .objective import Objective
from .pause import Pause
from .quiet_star import QuietStar

QUIET_STAR, PAUSE, NO_THOUGHT = "quiet_star", "pause", "no_thought"


class NoPolicy(QuietStar):
    trains = True


class ShuffledReward(QuietStar):
    trains = True


class Untrained(QuietStar):
    trains = False


class Before(NoThought):
    trains = False


METHODS: dict[str, type[Objective]] = {
    QUIET_STAR: QuietStar,
    "no_policy": NoPolicy,
    "shuffled_reward": ShuffledReward,
    PAUSE: Pause,
    NO_THOUGHT: NoThought,
    "untrained": Untrained,
    "before": Before,
}
