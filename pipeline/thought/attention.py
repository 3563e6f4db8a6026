"""Thought attention: rows of thoughts over a text that they share, and over their own earlier tokens.

One interface, three ways to compute the same numbers: `reference` (one softmax over everything, in plain operations),
`blocked` (CPU: the text in blocks by flash attention, merged with a row's own tokens by log-sum-exp) and `flex` (CUDA:
FlexAttention). `pick` below chooses; `Rows` says what a token may see.

    B  texts   N  tokens of a text   R  thoughts   P  positions   S  row tokens in this pass
    H  query heads   G  key-value heads   C  size of a head   (the whole legend: __init__.py)
"""

import logging
from functools import cache

import torch
from torch import Tensor

from . import attention_blocked, attention_flex, attention_reference
from .rows import Attend, Rows, Style

PATHS: dict[str, Attend] = {
    "reference": attention_reference.attend,
    "blocked": attention_blocked.attend,
    "flex": attention_flex.attend,
}
BY_DEVICE = {"cpu": "blocked", "cuda": "flex"}

log = logging.getLogger(__name__)


def pick(name: str, device: torch.device) -> str:
    """The path called ``name``, or the one for ``device`` where that is ``auto``. Raises ValueError for no path."""
    path = BY_DEVICE.get(device.type, "reference") if name == "auto" else name
    if path not in PATHS:
        raise ValueError(f"attention is {name!r}, but must be one of auto, {', '.join(PATHS)}")
    _say(path, device.type)
    return path


@cache
def _say(path: str, device: str) -> None:
    log.info("thought attention: %s (%s)", path, device)


def attend(
    path: str,
    rows: Rows,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix: tuple[Tensor, Tensor],
    style: Style,
) -> Tensor:
    """`rows.Attend` by ``path``; by the reference where that path has nothing to save or cannot express the rows.

    It saves nothing on one position (generation). It cannot express texts padded on the left, a sliding window shorter
    than the text and capped scores, nor `flex` a pass of part of a row or heads smaller than 16.
    """
    fits = len(rows.positions) > 1 and rows.is_plain(style)
    if path == "flex":
        fits = fits and rows.is_whole and query.shape[-1] >= attention_flex.SMALLEST_HEAD
    return PATHS[path if fits else "reference"](rows, query, key, value, prefix, style)
