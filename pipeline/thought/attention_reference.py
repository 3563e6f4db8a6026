"""Thought attention in plain operations: it holds every score at once and supports all of `Rows` and `Style`."""

import torch
from torch import Tensor

from .head import exact_dtype
from .rows import Rows, Style


def attend(
    rows: Rows, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], style: Style
) -> Tensor:
    """`rows.Attend`. One matrix product scores the text for all rows: query heads are folded into its rows."""
    prefix_key, prefix_value = prefix
    groups, count = prefix_key.shape[1], prefix_key.shape[2]
    query = query.unflatten(1, (groups, -1)) * style.scaling  # (B, G, H/G, R*P, S, C)
    shape, mask = query.shape[:-1], rows.prefix_mask(style.window)
    scores = style.cap(query.flatten(2, 4) @ prefix_key.mT).unflatten(2, (shape[2], -1, mask.shape[1], shape[4]))
    scores = scores.masked_fill(~mask[:, None, None, None], float("-inf")).view(*shape, count)
    own = style.cap(torch.einsum("bghmsc,bgmtc->bghmst", query, key))
    own = own.masked_fill(~rows.own_mask(style.window), float("-inf"))
    weights = softmax(torch.cat([scores, own], dim=-1))
    from_prefix = weights[..., :count].flatten(2, 4) @ prefix_value
    from_own = torch.einsum("bghmst,bgmtc->bghmsc", weights[..., count:], value)
    return (from_prefix.unflatten(2, shape[2:]) + from_own).flatten(1, 2)


def softmax(scores: Tensor) -> Tensor:
    """Softmax in at least float32, as transformers' own attention does it in half precision."""
    return torch.softmax(scores, dim=-1, dtype=exact_dtype(scores)).to(scores.dtype)
