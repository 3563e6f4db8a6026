"""What a thought may see: the text up to its position, and its own earlier tokens (paper, section 4.2).

`quiet_star_attention` is registered with transformers' attention interface, so any decoder that uses the interface
runs unchanged. What it attends to is decided by the *view* that the caller hands to the decoder as a keyword
argument: `TextView` for a pass over the text, which keeps every layer's keys and values, and `ThoughtView` for thought
rows, which read those. The text's keys are stored once, never repeated for a thought.
"""

from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

NAME = "quiet_star"


@dataclass(frozen=True)
class Style:
    """How a layer attends: the scale of its scores, its sliding window in tokens, the cap on its scores."""

    scaling: float
    window: int | None
    softcap: float | None


class View(Protocol):
    """What the tokens of one forward pass attend to."""

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        """From this pass's query (B, H, L, C), key and value (B, G, L, C), the attention's output (B, H, L, C)."""


@dataclass
class TextView:
    """The text so far: causal attention over it; ``keys`` and ``values`` (B, G, N, C) are kept for each layer.

    Calling the decoder again with the same view continues the text, as a key-value cache does.
    ``position_ids`` (B, N) and ``valid`` (B, N; None where nothing is padding) cover all N tokens, the new ones too.
    """

    position_ids: Tensor
    valid: Tensor | None = None
    keys: dict[int, Tensor] = field(default_factory=dict)
    values: dict[int, Tensor] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        past = self.position_ids.shape[1] - query.shape[2]
        if past:  # up to there: gradient checkpointing runs a layer again after its keys were stored
            key = torch.cat([self.keys[layer][:, :, :past], key], dim=2)
            value = torch.cat([self.values[layer][:, :, :past], value], dim=2)
        self.keys[layer], self.values[layer] = key, value
        mask = self._mask(query.shape[2], style.window)
        if style.softcap is None:
            return F.scaled_dot_product_attention(query, key, value, mask, scale=style.scaling, enable_gqa=True)
        groups = key.shape[1]
        scores = torch.einsum("bghlc,bgnc->bghln", query.unflatten(1, (groups, -1)), key) * style.scaling
        scores = _cap(scores, style.softcap).masked_fill(~mask.unsqueeze(1), float("-inf"))
        return torch.einsum("bghln,bgnc->bghlc", _softmax(scores), value).flatten(1, 2)

    def extended(self, position_ids: Tensor, valid: Tensor | None) -> "TextView":
        """The same text, about to be continued by the tokens that ``position_ids`` (B, N) and ``valid`` add."""
        return TextView(position_ids, valid, self.keys, self.values)

    def _mask(self, new: int, window: int | None) -> Tensor:
        """Whether each of the last ``new`` tokens sees each of the N: (B or 1, 1, new, N)."""
        count = self.position_ids.shape[1]
        order = torch.arange(count, device=self.position_ids.device)
        mask = (order[-new:, None] >= order).expand(1, new, count)
        if window is not None:
            mask = mask & (self.position_ids[:, -new:, None] - self.position_ids[:, None] < window)
        if self.valid is not None:  # a padding token sees itself, lest its softmax is empty
            mask = mask & (self.valid[:, None] | (order[-new:, None] == order))
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
    """Thought rows after the text at ``positions`` (P,), R of them each; this pass feeds S tokens of every row.

    ``row_position_ids`` (B, P, S) are the position ids of these tokens, the first of which is row token ``first``.
    ``own`` holds the rows' earlier tokens; None where a pass feeds whole rows (and wants gradients).
    """

    text: TextView
    positions: Tensor
    row_position_ids: Tensor
    first: int = 0
    own: OwnTokens | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        rows = query.shape[2] // self.row_position_ids.shape[2]
        query, key, value = (x.unflatten(2, (rows, -1)) for x in (query, key, value))
        if self.own is not None:
            key, value = self.own.append(layer, key, value, self.first)
        output = attend_prefix_and_own(
            query,
            key,
            value,
            self.text.keys[layer],
            self.text.values[layer],
            self._prefix_mask(style.window),
            self._own_mask(key.shape[3], style.window),
            style,
        )
        return output.flatten(2, 3)

    def _prefix_mask(self, window: int | None) -> Tensor:
        """Whether a row token sees a text token: (B or 1, P, S or 1, N)."""
        order = torch.arange(self.text.position_ids.shape[1], device=self.positions.device)
        mask = (self.positions[:, None] >= order)[None, :, None]
        if window is not None:
            mask = mask & (self.row_position_ids.unsqueeze(-1) - self.text.position_ids[:, None, None] < window)
        if self.text.valid is not None:
            mask = mask & self.text.valid[:, None, None]
        return mask

    def _own_mask(self, seen: int, window: int | None) -> Tensor:
        """Whether row token ``first + s`` sees row token t: (S, ``seen``)."""
        order = torch.arange(seen, device=self.positions.device)
        distance = order[self.first :, None] - order
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


def attend_prefix_and_own(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prefix_key: Tensor,
    prefix_value: Tensor,
    prefix_mask: Tensor,
    own_mask: Tensor,
    style: Style,
) -> Tensor:
    """One softmax over the shared prefix and the row's own tokens: (B, H, R*P, S, C).

    ``query`` (B, H, R*P, S, C); ``key``, ``value`` (B, G, R*P, S', C); ``prefix_key``, ``prefix_value`` (B, G, N, C);
    ``prefix_mask`` (B or 1, P, S or 1, N); ``own_mask`` (S, S'). The prefix's scores are one matrix product for all
    rows of a text; query heads are folded into its rows, so that grouped key-value heads are never repeated.
    """
    groups, count = prefix_key.shape[1], prefix_key.shape[2]
    query = query.unflatten(1, (groups, -1)) * style.scaling  # (B, G, H/G, R*P, S, C)
    shape = query.shape[:-1]
    prefix = query.flatten(2, 4) @ prefix_key.transpose(-1, -2)
    prefix = _cap(prefix, style.softcap).unflatten(2, (shape[2], -1, *prefix_mask.shape[1:2], shape[4]))
    prefix = prefix.masked_fill(~prefix_mask[:, None, None, None], float("-inf")).view(*shape, count)
    own = _cap(torch.einsum("bghmsc,bgmtc->bghmst", query, key), style.softcap)
    own = own.masked_fill(~own_mask, float("-inf"))
    weights = _softmax(torch.cat([prefix, own], dim=-1))
    from_prefix = weights[..., :count].flatten(2, 4) @ prefix_value
    from_own = torch.einsum("bghmst,bgmtc->bghmsc", weights[..., count:], value)
    return (from_prefix.unflatten(2, shape[2:]) + from_own).flatten(1, 2)


def _cap(scores: Tensor, softcap: float | None) -> Tensor:
    return scores if softcap is None else torch.tanh(scores / softcap) * softcap


def _softmax(scores: Tensor) -> Tensor:
    """Softmax in at least float32, as transformers' own attention does it in half precision."""
    return torch.softmax(scores, dim=-1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(scores.dtype)


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
    view: View | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """transformers' attention interface: query (B, H, L, C), key and value (B, G, L, C) -> (B, L, H, C).

    Raises ValueError for attention that a view cannot express, so that no model runs with something left out.
    """
    if view is None:
        raise ValueError("a Quiet-STaR decoder is run through pipeline.thought.decoder, which says what it may see")
    if s_aux is not None or attention_mask is not None:
        raise ValueError(f"{type(module).__name__} uses attention sinks or a mask of its own, which is not supported")
    style = Style(query.shape[-1] ** -0.5 if scaling is None else scaling, sliding_window, softcap)
    return view.attend(module.layer_idx, query, key, value, style).transpose(1, 2), None


AttentionInterface.register(NAME, quiet_star_attention)
