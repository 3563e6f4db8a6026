"""Does it matter what was thought? Thoughts that stand in the place of a text's own: another text's, or random tokens.

Every choice is made from the seed and the whole set, so it does not depend on batches, processes or the order of calls.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

SWAPPED, RANDOM, SAME_LAST = CONTROLS = "swapped", "random", "same_last"
NOBODY = -1  # in the place of a donor
SWAPS = 4  # random exchanges of donors for each member


@dataclass(frozen=True)
class ThoughtsOfText:
    """Thoughts after successive positions of one text: ``ids`` (P, K), of which each keeps the first ``lengths`` (P,).

    The ids after those say that the thought has ended.
    """

    ids: np.ndarray
    lengths: np.ndarray

    @classmethod
    def from_json(cls, values: dict) -> "ThoughtsOfText":
        return cls(np.array(values["ids"]), np.array(values["lengths"]))

    def to_json(self) -> dict:
        return {"ids": self.ids.tolist(), "lengths": self.lengths.tolist()}

    @property
    def kept(self) -> np.ndarray:
        """Whether an id is a token of its thought: (P, K)."""
        return np.arange(self.ids.shape[1]) < self.lengths[:, None]

    def tokens(self) -> list[list[int]]:
        """The tokens of each thought."""
        return [ids[:length].tolist() for ids, length in zip(self.ids, self.lengths, strict=True)]

    def at(self, places: np.ndarray | Sequence[int]) -> "ThoughtsOfText":
        return ThoughtsOfText(self.ids[places], self.lengths[places])

    def ending_together(self, count: int) -> "ThoughtsOfText":
        """Thoughts for ``count`` positions, aligned at the last one; where there are fewer, the first is repeated."""
        return self.at(np.maximum(0, len(self.ids) - count + np.arange(count)))

    def starting_together(self, count: int) -> "ThoughtsOfText":
        """Thoughts for ``count`` positions, aligned at the first one; where there are fewer, they begin again."""
        return self.at(np.arange(count) % len(self.ids))

    def randomized(self, pool: np.ndarray, *seeds: int) -> "ThoughtsOfText":
        """Thoughts as long as these whose tokens are drawn from ``pool`` (`pooled`), one by one."""
        chances = np.random.default_rng(seeds).integers(max(1, pool[-1]), size=self.ids.shape)
        return ThoughtsOfText(np.where(self.kept, np.searchsorted(pool, chances, side="right"), self.ids), self.lengths)


def pooled(thoughts: Iterable[ThoughtsOfText], vocabulary: int) -> np.ndarray:
    """The running counts (V,) of all tokens of these thoughts."""
    counts = np.zeros(vocabulary, int)
    for some in thoughts:
        counts += np.bincount(some.ids[some.kept], minlength=vocabulary)
    return counts.cumsum()


def derangement(groups: Sequence, seed: int) -> np.ndarray:
    """A donor (n,) for each of n members of ``groups``: each gives once, and nobody to themselves.

    A donor is of another group; only where one group of m has more than half of the members, 2m - n of them have a
    donor of their own group. `NOBODY` for everybody if there is but one group.
    """
    _, codes, sizes = np.unique(groups, return_inverse=True, return_counts=True)
    members, largest = len(codes), sizes.max()
    if len(sizes) == 1:
        return np.full(members, NOBODY)
    rng, donors = np.random.default_rng(seed), np.empty(members, int)
    # with each group's members side by side, one that stands as far away as the largest group is long is of another
    order = rng.permutation(members)
    order = order[np.argsort(rng.permutation(len(sizes))[codes[order]], kind="stable")]
    donors[order] = np.roll(order, -rng.integers(largest, max(largest, members - largest) + 1))
    for i, j in rng.integers(members, size=(SWAPS * members, 2)):  # so that a group has donors of many groups
        if codes[i] != codes[donors[j]] and codes[j] != codes[donors[i]]:
            donors[[i, j]] = donors[[j, i]]
    return donors


def same_last(lasts: Sequence[int], groups: Sequence, seed: int) -> np.ndarray:
    """For each of n members one of another group with the same value in ``lasts`` (n,); `NOBODY` if there is none."""
    lasts, groups = np.asarray(lasts), np.asarray(groups)
    alike = {last: np.flatnonzero(lasts == last) for last in np.unique(lasts)}
    donors = np.full(len(lasts), NOBODY)
    for i, last in enumerate(lasts):
        others = alike[last][groups[alike[last]] != groups[i]]
        if len(others):
            donors[i] = np.random.default_rng((seed, i)).choice(others)
    return donors
