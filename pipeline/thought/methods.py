"""The methods by the names that a configuration gives them: each is an objective and what a thought is to it."""

from .controls import Before, NoPolicy, ShuffledReward, Untrained
from .no_thought import NoThought
from .objective import Objective
from .pause import Pause
from .quiet_star import QuietStar

QUIET_STAR, PAUSE, NO_THOUGHT = "quiet_star", "pause", "no_thought"
METHODS: dict[str, type[Objective]] = {
    QUIET_STAR: QuietStar,
    "no_policy": NoPolicy,
    "shuffled_reward": ShuffledReward,
    PAUSE: Pause,
    NO_THOUGHT: NoThought,
    "untrained": Untrained,
    "before": Before,
}
