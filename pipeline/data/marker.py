"""Where a text has just said the marker `train.thinking.marker`: training and evaluation find the same places."""

from collections.abc import Callable

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

PART = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer writes for some bytes of a character


def follow_marker(ids: Tensor, marker: str, tokenizer: PreTrainedTokenizerBase, known: dict[int, bool]) -> Tensor:
    """Whether the text up to each token (B, N), or up to spaces at its end, ends with the marker.

    Spaces, as many tokenizers make one of the space before a digit. Decoded where the token alone may end one, which
    ``known`` remembers from call to call.
    """

    def decode(some: list[list[int]]) -> list[str]:
        return tokenizer.batch_decode(some) if some else []  # of no text transformers makes an empty one

    texts = ids.tolist()
    new = sorted({token for text in texts for token in text} - known.keys())
    for token, text in zip(new, decode([[token] for token in new]), strict=True):
        known[token] = text.rstrip(" ").endswith((marker[-1], PART)) or not text.strip(" ")
    tail = _longest(marker)
    places = [(b, i) for b, text in enumerate(texts) for i, token in enumerate(text) if known[token]]
    found = torch.zeros(ids.shape, dtype=torch.bool)
    for place, text in zip(places, decode([texts[b][max(0, i + 1 - tail) : i + 1] for b, i in places]), strict=True):
        found[place] = text.endswith(marker) or text.rstrip(" ").endswith(marker)
    return found.to(ids.device)


def ends_with(marker: str, tokenizer: PreTrainedTokenizerBase) -> Callable[[Tensor], Tensor]:
    """A rule for `generate(think=...)`: which of the texts so far (B, N) end with the marker, as in training."""
    known: dict[int, bool] = {}
    return lambda ids: follow_marker(ids[:, -_longest(marker) :], marker, tokenizer, known)[:, -1]


def _longest(marker: str) -> int:
    """Tokens that the marker and spaces after it may have: a byte-level one may be one byte of a character's four."""
    return 4 * len(marker) + 4
