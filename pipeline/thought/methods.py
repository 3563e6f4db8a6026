"""The methods by the names that a configuration gives them: each is an objective and what a thought is to it."""

from .controls import Before, NoPolicy, ShuffledReward, TrainedSwapped, Untrained
from .distilled import Distilled
from .no_thought import NoThought
from .objective import Objective
from .pause import Pause
from .quiet_star import QuietStar
from .rlp import Rlp
from .value import Value

QUIET_STAR, PAUSE, PAUSE_SAME_COMPUTE, NO_THOUGHT = "quiet_star", "pause", "pause_same_compute", "no_thought"
DISTILLED = "distilled"
RLP = "rlp"
METHODS: dict[str, type[Objective]] = {
    QUIET_STAR: QuietStar,
    "no_policy": NoPolicy,
    "shuffled_reward": ShuffledReward,
    "trained_swapped": TrainedSwapped,
    DISTILLED: Distilled,
    RLP: Rlp,
    "value": Value,
    PAUSE: Pause,
    PAUSE_SAME_COMPUTE: Pause,  # takes more steps: `settings_of` in pipeline/training/quiet_star/schedule.py
    NO_THOUGHT: NoThought,
    "untrained": Untrained,
    "before": Before,
}
