"""A row of the table of bad inputs."""

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from tests.bad_input.spoil import Spoil

SOMETHING = "…"  # in a message: what depends on the machine, or is a library's own text
PROJECT = "PROJECT"  # the project's folder


@dataclass(frozen=True)
class Case:
    """What is ``wrong`` (after `spoil`, and while `during` lasts), and the message with which ``stage`` ends."""

    wrong: str
    stage: str
    message: str
    spoil: Spoil = lambda project: None
    during: Callable[[Path], AbstractContextManager] = lambda project: nullcontext()
    environment: Mapping[str, str] = field(default_factory=dict)

    def tells(self, told: str, project: Path) -> bool:
        """Whether ``told`` is the message."""
        pattern = re.escape(self.message.replace(PROJECT, str(project))).replace(SOMETHING, ".*")
        return re.fullmatch(pattern, told) is not None
