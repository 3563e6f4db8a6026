"""What the decoder's attention layers look at (paper, section 4.2).

`quiet_star_attention` is registered with transformers' attention interface, so any decoder that uses the interface
runs unchanged. What it attends to is decided by the *view* whose `attend` the caller hands to the decoder as a keyword
argument: `TextView` for a pass over the text, which keeps every layer's keys and values, and `ThoughtView` for thought
rows, which read those. The text's keys are stored once, never repeated for a thought.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .attention import attend
from .attention_reference import softmax
from .rows import Rows, Style

NAME = "quiet_star"


class View(Protocol):
    """What the tokens of one forward pass attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        """From this pass's query (B, H, L, C), key and value (B, G, L, C), the attention's output (B, H, L, C)."""


@dataclass
class TextView:
    """A text read at once: causal attention; ``keys`` and ``values`` (B, G, N, C) are kept for each layer.

    ``position_ids`` (B, N); ``valid`` (B, N), None where no padding stands before a text's end. ``path`` is how
    thoughts attend to the text (`attention.pick`).
    """

    position_ids: Tensor
    valid: Tensor | None = None
    path: str = "reference"
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        self.keys[layer], self.values[layer] = key, value
        return causal_attention(query, key, value, self.position_ids, self.valid, style)

    def tensors(self) -> list[Tensor]:
        """Every layer's keys and values."""
        return [*self.keys.values(), *self.values.values()]

    def holding(self, tensors: Sequence[Tensor]) -> "TextView":
        """The same text with these in place of `tensors`."""
        keys = dict(zip(self.keys, tensors, strict=False))
        return replace(self, keys=keys, values=dict(zip(self.values, tensors[len(keys) :], strict=True)))


@dataclass
class GrowingView:
    """A text that grows, without gradients: causal attention over all L tokens so far, the new ones at its end.

    Keys and values are in buffers (B, G, ``capacity``, C) that they are written to once. A pass whose L is smaller than
    the last one's takes tokens back: a thought is written after the text, and the next true token over it.
    """

    capacity: int
    position_ids: Tensor
    valid: Tensor | None = None
    buffers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        stop = self.position_ids.shape[1]
        if layer not in self.buffers:
            self.buffers[layer] = tuple(x.new_empty(*x.shape[:2], self.capacity, x.shape[3]) for x in (key, value))
        for buffer, new in zip(self.buffers[layer], (key, value), strict=True):
            buffer[:, :, stop - new.shape[2] : stop] = new
        key, value = (buffer[:, :, :stop] for buffer in self.buffers[layer])
        return causal_attention(query, key, value, self.position_ids, self.valid, style)

    def at(self, position_ids: Tensor, valid: Tensor | None) -> "GrowingView":
        """The same text with all its tokens' ``position_ids`` and ``valid`` (B, L), the next pass's among them."""
        return replace(self, position_ids=position_ids, valid=valid)

    def of(self, texts: Tensor) -> "GrowingView":
        """These of its texts (indices, some of them maybe several times); `at` says what they then are."""
        pairs = {layer: tuple(x.index_select(0, texts) for x in pair) for layer, pair in self.buffers.items()}
        return replace(self, buffers=pairs)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, valid: Tensor | None, style: Style
) -> Tensor:
    """A text's last M tokens (B, H, M, C) attend to all L (B, G, L, C) up to themselves: (B, H, M, C)."""
    mask = _causal_mask(query.shape[2], position_ids, valid, style.window)
    if style.softcap is None:
        whole = mask is None and query.shape[2] > 1
        return F.scaled_dot_product_attention(
            query, key, value, mask, is_causal=whole, scale=style.scaling, enable_gqa=True
        )
    scores = torch.einsum("bghmc,bglc->bghml", query.unflatten(1, (key.shape[1], -1)), key) * style.scaling
    if mask is None:
        new, count = scores.shape[-2:]  # the newest ones, which see all that were before
        mask = torch.ones(new, count, dtype=torch.bool, device=query.device).tril(count - new)[None, None]
    scores = style.cap(scores).masked_fill(~mask.unsqueeze(1), float("-inf"))
    return torch.einsum("bghml,bglc->bghmc", softmax(scores), value).flatten(1, 2)


def _causal_mask(new: int, position_ids: Tensor, valid: Tensor | None, window: int | None) -> Tensor | None:
    """Whether each of the last ``new`` tokens sees each of the L: (B or 1, 1, new, L).

    None where one new token sees everything, or all tokens are new and each sees all before it.
    """
    count = position_ids.shape[1]
    if window is not None and window >= count:
        window = None
    if valid is None and window is None and new in (1, count):
        return None
    order = torch.arange(count, device=position_ids.device)
    mask = (order[-new:, None] >= order).expand(1, new, count)
    if window is not None:
        mask = mask & (position_ids[:, -new:, None] - position_ids[:, None] < window)
    if valid is not None:  # a padding token sees itself, lest its softmax is empty
        mask = mask & (valid[:, None] | (order[-new:, None] == order))
    return mask.unsqueeze(1)


class OwnTokens:
    """Keys and values of the tokens that each thought row has had so far, in buffers of their final length."""

    def __init__(self, row_tokens: int):
        self._row_tokens = row_tokens
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def append(self, layer: int, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Store key and value (B, G, R*P, S, C) from row token ``first`` on; return all so far."""
        if layer not in self._buffers:
            shape = (*key.shape[:3], self._row_tokens, key.shape[-1])
            self._buffers[layer] = (key.new_empty(shape), value.new_empty(*shape[:-1], value.shape[-1]))
        stop = first + key.shape[3]
        for buffer, new in zip(self._buffers[layer], (key, value), strict=True):
            buffer[..., first:stop, :] = new
        return tuple(buffer[..., :stop, :] for buffer in self._buffers[layer])


@dataclass
class ThoughtView:
    """Thought ``rows`` over ``text``; ``own`` holds the rows' earlier tokens, None where a pass feeds whole rows."""

    text: TextView
    rows: Rows
    own: OwnTokens | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        query, key, value = (x.unflatten(2, (-1, self.rows.tokens)) for x in (query, key, value))
        if self.own is not None:
            key, value = self.own.append(layer, key, value, self.rows.first)
        prefix = self.text.keys[layer], self.text.values[layer]
        return attend(self.text.path, self.rows, query, key, value, prefix, style).flatten(2, 3)


@torch.compiler.disable  # a compiled layer would be compiled anew for every view
def quiet_star_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    look: Callable[..., Tensor] | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, L, C), key and value (B, G, L, C) -> (B, L, H, C).

    ``look`` is a view's `attend`, not the view: FSDP2 hands layers copies of the dataclasses that it finds.
    Raises ValueError for attention that a view cannot express, so that no model runs with something left out.
    """
    if look is None:
        raise ValueError("a Quiet-STaR decoder is run through pipeline.thought.decoder, which says what it may see")
    if s_aux is not None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} uses attention sinks or a mask of its own, which is not supported")
    style = Style(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    device = query.device.type
    if torch.is_autocast_enabled(device):  # rotary embeddings give float32 queries and keys, but not values
        query, key, value = (x.to(torch.get_autocast_dtype(device)) for x in (query, key, value))
    with torch.autocast(device, enabled=False):
        output = look(module.layer_idx, query, key, value, style)
    return output.transpose(1, 2), None


AttentionInterface.register(NAME, quiet_star_attention)
