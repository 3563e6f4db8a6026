"""A few of the micro-world's documents, for tests that need some text."""

from collections.abc import Iterator

from pipeline.data.corpus import microworld

KINDS = {"rings": 0.38, "animals": 0.28, "lookups": 0.2, "facts": 0.09, "stories": 0.05}


def documents(split: str, count: int) -> Iterator[str]:
    """Of seed 1, with two moves, and asides in half of the problems of every split."""
    return microworld.documents(split, count, 1, (2, 2), 0.5, 0.0, KINDS)
