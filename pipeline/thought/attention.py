"""Thought attention: each thought row attends to a text, which all rows share, and to its own earlier tokens.

Three paths compute the same numbers: `reference` (one softmax over everything, in plain operations), `blocked` (CPU:
flash attention over blocks of text, merged with a row's own tokens by log-sum-exp) and `flex` (CUDA: FlexAttention).
`rows.Attend` is their interface; `rows.Rows` says which tokens a row may see. Shapes: see `__init__`.
"""

import logging
from functools import cache

import torch
from torch import Tensor

from .attention_blocked import attend as blocked
from .attention_flex import SMALLEST_HEAD
from .attention_flex import attend as flex
from .attention_flex import fails as flex_fails
from .attention_reference import attend as reference
from .rows import Attend, Rows, Style

PATHS: dict[str, Attend] = {"reference": reference, "blocked": blocked, "flex": flex}
BY_DEVICE = {"cpu": "blocked", "cuda": "flex"}

log = logging.getLogger(__name__)


@cache  # so that a path is logged once
def pick(name: str, device: torch.device) -> str:
    """The path called ``name``; ``auto`` picks one for ``device``. Raises ValueError for an unknown name."""
    path = BY_DEVICE.get(device.type, "reference") if name == "auto" else name
    if path not in PATHS:
        raise ValueError(f"attention is {name!r}, but must be one of auto, {', '.join(PATHS)}")
    if name == "auto" and path == "flex" and (why := flex_fails(device)):
        path = "reference"
        log.warning("FlexAttention does not run here, so every score is in memory at once: %s", why)
    log.info("thought attention: %s (%s)", path, device.type)
    return path


def attend(
    path: str, rows: Rows, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], style: Style
) -> Tensor:
    """`rows.Attend` by ``path``, or by the reference where ``path`` cannot express the rows or saves nothing.

    `blocked` and `flex` cannot express left padding, a sliding window shorter than the text, capped scores, or values
    of another width than keys; `flex` neither a pass of part of a row nor heads smaller than 16. One position alone
    (generation) has nothing to save.
    """
    fits = rows.positions.shape[-1] > 1 and rows.is_plain(style) and value.shape[-1] == key.shape[-1]
    if path == "flex":
        fits = fits and rows.first == 0 and rows.tokens > 1 and query.shape[-1] >= SMALLEST_HEAD
    return PATHS[path if fits else "reference"](rows, query, key, value, prefix, style)
