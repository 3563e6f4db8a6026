"""Thought attention for CUDA GPUs: one FlexAttention kernel over the text and the rows' own tokens.

The keys are the text, padded to a multiple of 128, followed by every row's own tokens. The block mask skips what a row
does not see, and no tensor of rows x keys scores ever exists (FlexAttention: Dong et al. 2024). Lengths are padded
because PyTorch has had wrong gradients for lengths that are no multiple of 128 (pytorch issues 153799 and 158212).
"""

from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from .rows import Rows, Style

TILE = 128
SMALLEST_HEAD = 16  # that the compiled kernel accepts


def attend(
    rows: Rows, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], style: Style
) -> Tensor:
    """`rows.Attend`, for whole rows (``rows.first`` 0) that see all of the text up to their position."""
    shape, count = query.shape, prefix[0].shape[2]
    mask = block_mask(rows.at, count, shape[2], shape[3], query.device)
    key, value = (
        torch.cat([_padded(text), _padded(own.flatten(2, 3))], dim=2)
        for text, own in zip(prefix, (key, value), strict=True)
    )
    output = _kernel(query.device.type)(
        _padded(query.flatten(2, 3)), key, value, block_mask=mask, scale=style.scaling, enable_gqa=True
    )
    return output[:, :, : shape[2] * shape[3]].reshape(shape)


@lru_cache(maxsize=64)
def block_mask(positions: tuple[int, ...], text: int, rows: int, tokens: int, device: torch.device) -> BlockMask:
    """The mask of ``rows`` (R*P) rows of ``tokens`` (S) each over ``text`` (N) tokens and the rows' own.

    It is cached by shape, as making it takes a padded queries x keys table of booleans for a moment. Its numbers are
    held in tensors, as the compiler makes a new kernel for every new Python number, and gives up after eight.
    """
    own_start, length = _round_up(text), rows * tokens
    query = torch.arange(_round_up(length), device=device)
    key = torch.arange(own_start + _round_up(length), device=device)
    # a padded query sees the first text token, as a softmax over nothing is not a number
    places = torch.tensor(positions, device=device)
    position = torch.where(query < length, places[query // tokens % len(positions)], 0)
    order = torch.where(key < text, key, torch.iinfo(key.dtype).max)
    row = torch.where(query < length, query // tokens, -1)
    own = (key >= own_start) & (key < own_start + length)
    own_row = torch.where(own, (key - own_start) // tokens, -2)
    step, own_step = query % tokens, (key - own_start) % tokens

    def sees(_b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (order[k] <= position[q]) | ((own_row[k] == row[q]) & (own_step[k] <= step[q]))

    return create_block_mask(sees, None, None, len(query), len(key), device=device, BLOCK_SIZE=TILE)


@cache
def _kernel(device: str):
    """FlexAttention, compiled on CUDA, as it is slow otherwise; uncompiled on a CPU, where it has no backward pass."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def _round_up(length: int) -> int:
    return -(-length // TILE) * TILE


def _padded(x: Tensor) -> Tensor:
    """Pad (..., L, C) with zeros at the end of L, up to a multiple of TILE."""
    return F.pad(x, (0, 0, 0, _round_up(x.shape[-2]) - x.shape[-2]))
