"""The ways of training that a page can be about, and what each calls its thoughts."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """``thinks``: thoughts or pauses come before a prediction; ``writes``: the thoughts are words to read."""

    key: str
    name: str
    act: str
    one: str
    many: str
    thinks: bool
    writes: bool

    @property
    def title(self) -> str:
        return f"{self.name[0].upper()}{self.name[1:]}"

    @property
    def off(self) -> str:
        """The arm of `compare` that is the trained model answering without its thoughts."""
        return f"{self.key}, thoughts off"

    @property
    def contrast(self) -> tuple[str, str]:
        """The two ways of answering whose difference the page is about."""
        return ("no_thought", "thought") if self.thinks else ("base", "no_thought")

    @property
    def ways(self) -> dict[str, str]:
        """The ways of answering that a run of this method has, with their names on the page."""
        return {"base": "before training", **self.trained_ways}

    @property
    def trained_ways(self) -> dict[str, str]:
        """The ways of answering of the trained model."""
        if not self.thinks:
            return {"no_thought": "after training"}
        return {"no_thought": f"without {self.many}", "thought": f"with {self.many}"}


METHODS = {
    method.key: method
    for method in (
        Method("quiet_star", "Quiet-STaR", "Thinking", "thought", "thoughts", thinks=True, writes=True),
        Method("pause", "pause tokens", "Pausing", "pause", "pauses", thinks=True, writes=False),
        Method("no_thought", "no thoughts", "Thinking", "thought", "thoughts", thinks=False, writes=False),
    )
}
