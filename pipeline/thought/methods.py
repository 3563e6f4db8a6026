"""The methods by the names that a configuration gives them: each is an objective and what a thought is to it."""

from .no_thought import NoThought
from .objective import Objective
from .pause import Pause
from .quiet_star import QuietStar

METHODS: dict[str, type[Objective]] = {"quiet_star": QuietStar, "pause": Pause, "no_thought": NoThought}
QUIET_STAR, PAUSE, NO_THOUGHT = METHODS
