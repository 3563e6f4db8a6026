"""What stands in the place of each question's own thoughts, to see whether it matters what they say."""

from collections.abc import Callable, Sequence

from pipeline.evaluation.donors import (
    NOBODY,
    RANDOM,
    SAME_LAST,
    SWAPPED,
    ThoughtsOfText,
    derangement,
    pooled,
    same_last,
)

# where a question's thoughts stand: before each token of the right answer, and of the number that the model writes
ANSWER, WRITTEN = PLACES = ("answer", "written")
OwnThoughts = dict[str, ThoughtsOfText]


class Controls:
    """The thoughts in the place of each question's own, by way.

    ``own`` gives a question's own thoughts by its index, ``groups`` (n,) names each question's group; tokens are below
    ``vocabulary``. Controls stand at as many positions as the own thoughts, and are aligned at the last one.
    """

    def __init__(self, own: Callable[[int], OwnThoughts], groups: Sequence[str], vocabulary: int, seed: int):
        indices = range(len(groups))
        firsts = [own(i)[ANSWER].at([0]) for i in indices]
        lasts = [int(first.ids[0, max(0, first.lengths[0] - 1)]) for first in firsts]
        self._own, self._seed = own, seed
        self._pool = pooled((own(i)[ANSWER] for i in indices), vocabulary)
        self._donors = {SWAPPED: derangement(groups, seed), SAME_LAST: same_last(lasts, groups, seed)}

    def of(self, index: int) -> dict[str, OwnThoughts]:
        """The controls that there are of question ``index``: random tokens, and the thoughts of its donors."""
        own = self._own(index)
        found = {RANDOM: {}}
        for place, some in own.items():
            found[RANDOM][place] = some.randomized(self._pool, self._seed, index, PLACES.index(place))
        for way, donors in self._donors.items():
            if donors[index] != NOBODY:
                donor = self._own(int(donors[index]))
                found[way] = {place: donor[place].ending_together(len(some.ids)) for place, some in own.items()}
        return found
