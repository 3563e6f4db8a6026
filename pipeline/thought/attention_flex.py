"""Thought attention for CUDA GPUs: one FlexAttention kernel over the text and the rows' own tokens.

The keys are the text, padded, followed by every row's own tokens. The block mask skips what a row
does not see, and no tensor of rows x keys scores ever exists (FlexAttention: Dong et al. 2024). Lengths are padded
because PyTorch has had wrong gradients for lengths that are no multiple of 128 (pytorch issues 153799 and 158212).
"""

from functools import cache, lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from .rows import Rows, Style

TILE = 128
SMALLEST_HEAD = 16  # that the compiled kernel accepts
# compiled for as many shapes at most; beyond the compiler's own limit of 8 it would go on uncompiled, with every score
# in memory at once, and only warn
KERNELS = 256


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
    with torch._dynamo.config.patch(recompile_limit=KERNELS, fail_on_recompile_limit_hit=True):
        output = _kernel(query.device.type)(
            _padded(query.flatten(2, 3)), key, value, block_mask=mask, scale=style.scaling, enable_gqa=True
        )
    return output[:, :, : shape[2] * shape[3]].reshape(shape)


@lru_cache(maxsize=64)
def block_mask(
    positions: tuple[tuple[int, ...], ...], text: int, rows: int, tokens: int, device: torch.device
) -> BlockMask:
    """The mask of ``rows`` (R*P) rows of ``tokens`` (S) each over ``text`` (N) tokens and the rows' own.

    ``positions`` are those of each text, or once those of all. Which tiles a tile of queries sees follows from the
    positions, so no table of queries x keys is made. The numbers are held in tensors, as the compiler makes a new
    kernel for every new Python number, and gives up after eight.
    """
    own_start, length = _round_up(text), rows * tokens
    query = torch.arange(_round_up(length), device=device)
    key = torch.arange(own_start + _round_up(length), device=device)
    # a padded query sees the first text token, as a softmax over nothing is not a number
    places = torch.tensor(positions, device=device)  # (1 or B, P)
    position = torch.where(query < length, places[:, query // tokens % places.shape[1]], 0)
    order = torch.where(key < text, key, torch.iinfo(key.dtype).max)
    row = torch.where(query < length, query // tokens, -1)
    own = (key >= own_start) & (key < own_start + length)
    own_row = torch.where(own, (key - own_start) // tokens, -2)
    step, own_step = query % tokens, (key - own_start) % tokens
    shared = len(places) == 1

    def sees(b: Tensor, _h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        here = position[0, q] if shared else position[b, q]
        return (order[k] <= here) | ((own_row[k] == row[q]) & (own_step[k] <= step[q]))

    by_tile = position.unflatten(1, (-1, TILE))  # (1 or B, tiles of queries, TILE)
    first, last = by_tile.amin(-1, keepdim=True), by_tile.amax(-1, keepdim=True)
    starts = key[::TILE]
    whole = (starts + TILE - 1 <= first) & (starts + TILE <= text)
    tiles = query[::TILE, None]
    first_row, last_row = tiles // tokens, (tiles + TILE - 1).clamp(max=length - 1) // tokens  # of a tile of queries
    owns = starts - own_start
    # a row that crosses into the next tile is not seen there by its earlier tokens
    meets = (owns >= 0) & (owns <= tiles) & (owns < length) & (tiles < length)
    meets &= (owns // tokens <= last_row) & ((owns + TILE - 1) // tokens >= first_row)
    partly = ((starts <= last) & (starts < text) & ~whole) | meets
    return BlockMask.from_kv_blocks(
        *_listed(partly), *_listed(whole), BLOCK_SIZE=TILE, mask_mod=sees, seq_lengths=(len(query), len(key))
    )


def _listed(tiles: Tensor) -> tuple[Tensor, Tensor]:
    """How many tiles of keys (B, 1, Q) are marked in ``tiles`` (B, Q, K), and their numbers (B, 1, Q, K) first."""
    order = (~tiles).int().argsort(dim=-1, stable=True)
    return tiles.sum(-1, dtype=torch.int32).unsqueeze(1), order.to(torch.int32).unsqueeze(1)


@cache
def _kernel(device: str):
    """FlexAttention, compiled on CUDA, as it is slow otherwise; uncompiled on a CPU, where it has no backward pass."""
    return torch.compile(flex_attention, dynamic=False) if device == "cuda" else flex_attention


def fails(device: torch.device) -> str | None:
    """Why a small pass and its backward pass cannot be compiled and run on ``device``; None if they can."""
    try:
        query, key = (torch.zeros(1, 1, TILE, SMALLEST_HEAD, device=device, requires_grad=True) for _ in range(2))
        mask = block_mask(((0, 1),), 2, 2, 2, device)
        padded = torch.cat([key, key], dim=2)
        _kernel(device.type)(query, padded, padded, block_mask=mask).sum().backward()
    except Exception as error:  # the compiler's, triton's and the driver's are of many types
        return str(error).strip().split("\n")[0] or type(error).__name__
    return None


def _round_up(length: int) -> int:
    """A multiple of TILE, and of a quarter of the power of two below: so few lengths that few kernels are compiled."""
    step = max(TILE, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def _padded(x: Tensor) -> Tensor:
    """Pad (..., L, C) with zeros at the end of L, up to `_round_up`."""
    return F.pad(x, (0, 0, 0, _round_up(x.shape[-2]) - x.shape[-2]))
