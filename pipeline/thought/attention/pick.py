"""Which way a device computes thought attention."""

import logging
from functools import cache

import torch
from torch import Tensor

from pipeline.thought.attention import blocked, flex, reference
from pipeline.thought.attention.rows import Attend, Rows, Style

PATHS: dict[str, Attend] = {"reference": reference.attend, "blocked": blocked.attend, "flex": flex.attend}
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
        fits = fits and rows.is_whole and query.shape[-1] >= flex.SMALLEST_HEAD
    return PATHS[path if fits else "reference"](rows, query, key, value, prefix, style)
