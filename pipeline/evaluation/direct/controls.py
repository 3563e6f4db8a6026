"""What stands in the place of each question's own thoughts, to see whether it matters what they say."""

from collections.abc import Callable, Sequence

import numpy as np

from pipeline.evaluation.donors import (
    ENDED,
    NOBODY,
    RANDOM,
    SAME_LAST,
    SWAPPED,
    derangement,
    ending_together,
    pooled,
    random_thoughts,
    same_last,
)

# where a question's thoughts stand: before each token of the right answer, and of the number that the model writes
ANSWER, WRITTEN = PLACES = ("answer", "written")
ByPlace = dict[str, np.ndarray]  # a question's thoughts
Controls = Callable[[int], dict[str, ByPlace]]  # from a question's index: what stands in the place of its own, by way


def controls_of(own: Callable[[int], ByPlace], groups: Sequence[str], vocabulary: int, seed: int) -> Controls:
    """The controls of each question: random tokens, and its donors' thoughts where it has donors.

    ``own`` gives a question's own thoughts by its index, ``groups`` (n,) names each question's group; tokens are below
    ``vocabulary``. Controls stand at as many positions as the own thoughts, and are aligned at the last one.
    """
    indices = range(len(groups))
    firsts = [own(i)[ANSWER][0] for i in indices]
    lasts = [first[max(0, (first != ENDED).sum() - 1)] for first in firsts]
    pool = pooled((own(i)[ANSWER] for i in indices), vocabulary)
    donors = {SWAPPED: derangement(groups, seed), SAME_LAST: same_last(lasts, groups, seed)}

    def controls(index: int) -> dict[str, ByPlace]:
        mine, found = own(index), {RANDOM: {}}
        for place, ids in mine.items():
            found[RANDOM][place] = random_thoughts(ids, pool, seed, index, PLACES.index(place))
        for way, donor in ((way, int(of[index])) for way, of in donors.items()):
            if donor != NOBODY:
                theirs = own(donor)
                found[way] = {place: ending_together(theirs[place], len(ids)) for place, ids in mine.items()}
        return found

    return controls
