"""Does it matter what was thought? Thoughts that stand in the place of a text's own: another text's, or random tokens.

Thoughts after P successive positions of a text are ids (P, K), with `ENDED` behind the tokens of those that ended
themselves. Every choice is made from the seed and the whole set, so it does not depend on batches, processes or the
order of calls.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline.evaluation.names import RANDOM, SAME_LAST, SWAPPED
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Thoughts

ENDED = -1
SKIPPED = -2  # in the place of a thought that the gate did not want
NOBODY = -1  # in the place of a donor
SWAPS = 4  # random exchanges of donors for each member
# where a question's thoughts stand: before each token of the right answer, and of the number that the model writes; or
# before each token of the first choice's text (ANSWER), of the second's, ...
ANSWER, WRITTEN = "answer", "written"
ByPlace = dict[str, np.ndarray]  # a question's thoughts
Controls = Callable[[int], dict[str, ByPlace]]  # from a question's index: what stands in the place of its own, by way


def sampled(thoughts: Thoughts) -> np.ndarray:
    """The first thought after each position: (B, P, K)."""
    ended = torch.arange(thoughts.ids.shape[-1], device=thoughts.ids.device) >= thoughts.lengths.unsqueeze(-1)
    return thoughts.ids.masked_fill(ended, ENDED)[:, 0].cpu().numpy()


def as_input(thoughts: Sequence[np.ndarray], model: QuietStarForCausalLM) -> Tensor:
    """Thoughts (P, K) of B texts as the ``model`` takes them: (B, 1, P, K), `ENDED` as an id that ends thoughts."""
    ids = torch.tensor(np.stack(thoughts), device=model.device)[:, None]
    return ids.masked_fill(ids == ENDED, (model.config.endings or [0])[0])


def ending_together(thoughts: np.ndarray, count: int) -> np.ndarray:
    """Thoughts for ``count`` positions, aligned at the last one; where there are fewer, the first is repeated."""
    return thoughts[np.maximum(0, len(thoughts) - count + np.arange(count))]


def beginning_together(thoughts: np.ndarray, count: int) -> np.ndarray:
    """Thoughts for ``count`` positions, aligned at the first one; where there are fewer, the last is repeated."""
    return thoughts[np.minimum(np.arange(count), len(thoughts) - 1)]


def pooled(thoughts: Iterable[np.ndarray], vocabulary: int) -> np.ndarray:
    """The running counts (V,) of all tokens of these thoughts."""
    return sum(np.bincount(ids[ids != ENDED], minlength=vocabulary) for ids in thoughts).cumsum()


def random_thoughts(own: np.ndarray, pool: np.ndarray, *seeds: int) -> np.ndarray:
    """Thoughts as long as a text's ``own`` (P, K) whose tokens are drawn from ``pool`` (`pooled`), one by one."""
    chances = np.random.default_rng(seeds).integers(max(1, pool[-1]), size=own.shape)
    return np.where(own == ENDED, ENDED, np.searchsorted(pool, chances, side="right"))


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


def controls_of(
    own: Callable[[int], ByPlace],
    groups: Sequence[str],
    asked: Sequence[int],
    vocabulary: int,
    seed: int,
    align: Callable[[np.ndarray, int], np.ndarray] = ending_together,
) -> Controls:
    """The controls of each question: random tokens, and its donors' thoughts where it has donors.

    ``own`` gives a question's own thoughts by its index, ``groups`` (n,) names each question's group. ``asked`` (n,):
    the place of the answer's first token that the model chooses; `SAME_LAST` compares the thoughts before it, as those
    before tokens that are given decide nothing. Tokens are below ``vocabulary``. Controls stand at as many positions as
    the own thoughts; ``align`` says which goes where. A donor that has no thoughts at a place (as it has fewer choices)
    gives those of its first.
    """
    indices = range(len(groups))
    deciding = [own(i)[ANSWER][place] for i, place in enumerate(asked)]
    lasts = [thought[max(0, (thought != ENDED).sum() - 1)] for thought in deciding]
    pool = pooled((own(i)[ANSWER] for i in indices), vocabulary)
    if not pool[-1]:  # every thought before an answer has ended at once
        pool = pooled((ids for i in indices for ids in own(i).values()), vocabulary)
    donors = {SWAPPED: derangement(groups, seed), SAME_LAST: same_last(lasts, groups, seed)}

    def controls(index: int) -> dict[str, ByPlace]:
        mine, found = own(index), {RANDOM: {}}
        for number, (place, ids) in enumerate(mine.items()):
            found[RANDOM][place] = random_thoughts(ids, pool, seed, index, number)
        for way, donor in ((way, int(of[index])) for way, of in donors.items()):
            if donor != NOBODY:
                theirs = own(donor)
                found[way] = {place: align(theirs.get(place, theirs[ANSWER]), len(ids)) for place, ids in mine.items()}
        return found

    return controls
