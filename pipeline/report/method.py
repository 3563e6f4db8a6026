"""The ways of training that a page can be about, and what each calls its thoughts."""

from dataclasses import dataclass

from pipeline.errors import UserError
from pipeline.report.reading import Metrics


@dataclass(frozen=True)
class Method:
    """``thinks``: something comes between a text and its prediction; ``writes``: that is words which can be read."""

    key: str
    name: str
    act: str
    one: str
    many: str
    thinks: bool
    writes: bool

    @property
    def contrast(self) -> tuple[str, str]:
        """The two ways of answering whose difference the page is about."""
        return ("no_thought", "thought") if self.thinks else ("base", "no_thought")

    @property
    def ways(self) -> dict[str, str]:
        """The ways of answering that a run of this method has, with their names on the page."""
        if not self.thinks:
            return {"base": "before training", "no_thought": "after training"}
        return {"base": "before training", "no_thought": f"without {self.many}", "thought": f"with {self.many}"}


METHODS = {
    method.key: method
    for method in (
        Method("quiet_star", "Quiet-STaR", "Thinking", "thought", "thoughts", thinks=True, writes=True),
        Method("pause", "pause tokens", "Pausing", "pause", "pauses", thinks=True, writes=False),
        Method("no_thought", "no thoughts", "Thinking", "thought", "thoughts", thinks=False, writes=False),
    )
}


def read_method(train: Metrics) -> Method:
    key = train.at("method")
    if key not in METHODS:
        raise UserError(f"{train.path}: method is {key!r}, not one of {', '.join(METHODS)}")
    return METHODS[key]
