"""Spans: documents as rows of equally many token ids."""

import random
from collections.abc import Iterable, Iterator

import numpy as np

SHORTEST = 2  # tokens: a text of one token predicts nothing

Span = tuple[np.ndarray, int]  # token ids (N,), and how many of them are not padding


def packed(documents: Iterable[np.ndarray], span: int) -> Iterator[Span]:
    """The documents' token ids one after the other, cut every ``span`` tokens; the last, shorter piece is dropped."""
    pieces: list[np.ndarray] = []
    length = 0
    for ids in documents:
        pieces.append(ids)
        length += len(ids)
        if length >= span:
            row = np.concatenate(pieces)
            whole = length // span * span
            yield from ((piece, span) for piece in row[:whole].reshape(-1, span))
            pieces, length = [row[whole:]], length - whole


def one_each(documents: Iterable[np.ndarray], span: int, pad: int, seed: int) -> Iterator[Span]:
    """A random span of each document, padded on the right if the document is shorter (paper, section 5).

    Where it starts depends on the seed and the document's number alone.
    """
    for number, ids in enumerate(documents):
        if len(ids) < SHORTEST:
            continue
        start = random.Random(f"{seed}/{number}").randrange(len(ids) - span + 1) if len(ids) > span else 0
        kept = ids[start : start + span]
        yield np.pad(kept, (0, span - len(kept)), constant_values=pad), len(kept)
