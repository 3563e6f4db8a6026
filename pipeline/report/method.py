"""The arms in words: the methods, and what may stand in the place of a thought (`way`).

An arm is named METHOD, the method's own way of answering, or METHOD/WAY.
"""

from dataclasses import dataclass

from pipeline.evaluation.names import (
    GATED,
    MEAN,
    NO_THOUGHT,
    OFF,
    OWN_WHERE,
    RANDOM,
    SAME_LAST,
    SAMPLED,
    SWAPPED,
    THOUGHT,
)


@dataclass(frozen=True)
class Method:
    """``thinks``: thoughts or pauses come before a prediction; ``writes``: they are sampled, so they can be read.

    ``what`` says what the method does in training; {tokens} and {ahead} stand for the lengths of a thought and of the
    lookahead, {where} for the tokens that are thought about.
    """

    key: str
    name: str
    what: str
    one: str = "thought"
    many: str = "thoughts"
    thinks: bool = True
    writes: bool = True

    @property
    def title(self) -> str:
        return f"{self.name[0].upper()}{self.name[1:]}"

    @property
    def ways(self) -> dict[str, str]:
        """The ways of answering that `predictions.parquet` has of this method, with their names on the page."""
        ways = {NO_THOUGHT: f"without {self.many}" if self.thinks else "without thoughts"}
        if self.thinks:
            ways[THOUGHT] = f"with {self.many}"
        return ways | ({SWAPPED: "with another’s thought"} if self.writes else {})


# in the order of the page's tables
METHODS = {
    method.key: method
    for method in (
        Method(
            "quiet_star",
            "Quiet-STaR",
            "A hidden thought of {tokens} is written after {where} of a text, and rewarded if it makes the next "
            "{ahead} easier to predict.",
        ),
        Method(
            "no_policy",
            "no policy loss",
            "Thoughts of {tokens} that nobody rewards: only the mixing head and the language model learn.",
        ),
        Method(
            "shuffled_reward",
            "shuffled rewards",
            "Thoughts of {tokens} and the policy loss of Quiet-STaR, but each thought gets another’s advantage: what "
            "the update does whatever a thought was worth.",
        ),
        Method(
            "trained_swapped",
            "trained on swapped thoughts",
            "Thoughts of {tokens} that nobody rewards. In training each text reads those of another text: what is "
            "learned is what a second pass and a mixing head tell of the text itself.",
        ),
        Method(
            "distilled",
            "distilled",
            "Thoughts of {tokens} as with Quiet-STaR; what the model predicts without them also learns from what it "
            "predicts with them.",
        ),
        Method(
            "rlp",
            "RLP",
            "Thoughts of {tokens} are rewarded if they make the next {ahead} easier to predict, and that is all that "
            "is learned: no language modelling, no mixing head. The prediction is the one after the thought.",
        ),
        Method(
            "value",
            "learned value",
            "Thoughts of {tokens} and the reward of Quiet-STaR, but a small head that reads the text says what reward "
            "to expect, instead of the other thoughts there.",
        ),
        Method(
            "pause",
            "pauses",
            "A pause of {tokens} after {where} of a text. Its tokens are learned and always the same.",
            "pause",
            "pauses",
            writes=False,
        ),
        Method(
            "pause_same_compute",
            "pauses, same compute",
            "A pause of {tokens} after {where} of a text, trained for so many more steps that as many tokens pass "
            "through the model as with Quiet-STaR.",
            "pause",
            "pauses",
            writes=False,
        ),
        Method(
            "no_thought",
            "no thoughts",
            "The next token is predicted in the ordinary way: what reading the same text does.",
            thinks=False,
            writes=False,
        ),
        Method("untrained", "untrained thoughts", "Thoughts of {tokens} as initialised, mixing weight 1, no step."),
        Method("before", "before training", "The model before training, no thoughts.", thinks=False, writes=False),
    )
}
# the name of a way and what it is, in the order of the page's tables; "" is the method's own way
WAYS = {
    "": ("", ""),
    SWAPPED: ("swapped", "The thoughts of another question or text."),
    RANDOM: ("random", "Each token of a thought is drawn from the tokens of all thoughts."),
    OWN_WHERE: ("own, where same last", "Its own thoughts, on the questions of the next way."),
    SAME_LAST: ("same last token", "Another question’s thought that ends alike, where there is one."),
    OFF: ("thoughts off", "The trained model without thoughts."),
    GATED: ("gated", "A thought where the model’s gate wants one, elsewhere none."),
    SAMPLED: ("sampled", "One thought, sampled at temperature 1; all others are greedy."),
    MEAN: ("mean of 16", "The mean prediction over 16 sampled thoughts."),
}


def arm_name(arm: str) -> str:
    """The arm in words; what has no words keeps its name."""
    method, _, way = arm.partition("/")
    name = METHODS[method].name if method in METHODS else method
    return f"{name}, {WAYS.get(way, (way,))[0]}" if way else name


def arm_order(arm: str) -> tuple[int, int]:
    """Where the arm stands in the tables; what is not known comes last."""
    method, _, way = arm.partition("/")
    return tuple([*names, name].index(name) for names, name in ((METHODS, method), (WAYS, way)))
