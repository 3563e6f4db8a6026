"""What the decoder's attention layers attend to (paper, section 4.2).

`quiet_star_attention` is registered with transformers' attention interface, so any decoder that uses the interface runs
unchanged. The caller hands the decoder the `attend` method of a *view* as a keyword argument, and that view decides
what the layers attend to: `attend` gives a layer's output (B, H, L, C) from a pass's query (B, H, L, C), key and value
(B, G, L, C). `TextView` is for a pass over the text: it keeps every layer's keys and values. `ThoughtView` is for
thought rows: it reads those, which are stored once and never repeated for a thought.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface

from .attention import attend
from .attention_reference import softmax
from .rows import Packing, Rows, Style

NAME = "quiet_star"


@dataclass
class TextView:
    """Texts read in one pass: causal attention, which keeps each layer's keys and values (B, G, N, C) in ``cache``.

    ``position_ids`` (B, N). ``valid`` (B, N): False for padding; None if no text has padding before its end. ``path``:
    how thoughts attend to the text (`attention.pick`).
    """

    position_ids: Tensor
    valid: Tensor | None = None
    path: str = "reference"
    cache: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        self.cache[layer] = key, value
        return causal_attention(query, key, value, self.position_ids, self.valid, style)

    def tensors(self) -> list[Tensor]:
        """The keys and values of the first layer, of the second, and so on."""
        return list(chain.from_iterable(self.cache.values()))

    def with_tensors(self, tensors: Sequence[Tensor]) -> "TextView":
        """A copy of this view that uses ``tensors``, in the order of `tensors`, as its keys and values."""
        return replace(self, cache=dict(zip(self.cache, zip(tensors[::2], tensors[1::2], strict=True), strict=True)))


class KeyValueCache:
    """Each layer's keys and values of the tokens so far, in buffers that have room for ``capacity`` tokens."""

    def __init__(self, capacity: int):
        self._capacity = capacity
        self._buffers: dict[int, tuple[Tensor, Tensor]] = {}

    def write(self, layer: int, key: Tensor, value: Tensor, first: int) -> tuple[Tensor, Tensor]:
        """Write key and value (..., S, C) from token ``first`` on; return those of all tokens (..., first + S, C)."""
        if layer not in self._buffers:
            self._buffers[layer] = tuple(x.new_empty(*x.shape[:-2], self._capacity, x.shape[-1]) for x in (key, value))
        stop = first + key.shape[-2]
        for buffer, new in zip(self._buffers[layer], (key, value), strict=True):
            buffer[..., first:stop, :] = new
        return tuple(buffer[..., :stop, :] for buffer in self._buffers[layer])

    def select(self, texts: Tensor) -> None:
        """Keep these of the texts, by index (repeats allowed)."""
        self._buffers = {layer: tuple(x.index_select(0, texts) for x in pair) for layer, pair in self._buffers.items()}


@dataclass
class GrowingView:
    """Texts that grow, without gradients: the newest tokens attend causally to all L.

    ``position_ids`` and ``valid`` (B, L) as in `TextView`. A pass with a smaller L than the last one overwrites the
    cache from there: a true token replaces the thought.
    """

    cache: KeyValueCache
    position_ids: Tensor
    valid: Tensor | None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        first = self.position_ids.shape[1] - key.shape[2]
        key, value = self.cache.write(layer, key, value, first)
        return causal_attention(query, key, value, self.position_ids, self.valid, style)


def causal_attention(
    query: Tensor, key: Tensor, value: Tensor, position_ids: Tensor, valid: Tensor | None, style: Style
) -> Tensor:
    """The last M tokens of a text (B, H, M, C) attend to all L (B, G, L, C) up to themselves: (B, H, M, C).

    Query heads that share a key head are folded into the query axis, as CUDA's fast kernels take grouped heads only in
    half precision and without a mask.
    """
    groups, (new, count) = key.shape[1], (query.shape[2], key.shape[2])
    mask = _causal_mask(new, position_ids, valid, style.window)
    whole, capped = mask is None and new > 1, style.softcap is not None
    slow = groups < query.shape[1] and query.is_cuda and query.dtype == torch.float32
    if whole and not (capped or slow):
        return F.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=style.scaling, enable_gqa=groups < query.shape[1]
        )
    if whole:
        mask = torch.ones(1, 1, new, count, dtype=torch.bool, device=query.device).tril()
    folded = query.unflatten(1, (groups, -1)).flatten(2, 3)  # (B, G, H/G*M, C)
    mask = mask if mask is None else mask.repeat(1, 1, query.shape[1] // groups, 1)
    if not capped:
        output = F.scaled_dot_product_attention(folded, key, value, mask, scale=style.scaling)
    else:
        scores = style.cap(folded @ key.mT * style.scaling)
        output = softmax(scores if mask is None else scores.masked_fill(~mask, float("-inf"))) @ value
    return output.unflatten(2, (-1, new)).flatten(1, 2)


def _causal_mask(new: int, position_ids: Tensor, valid: Tensor | None, window: int | None) -> Tensor | None:
    """Whether each of the last ``new`` tokens sees each of the L: (B or 1, 1, new, L).

    None where no mask is needed: one new token sees everything, or all tokens are new and attend causally.
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
    if valid is not None:  # a padding token sees itself: a softmax over nothing is not a number
        mask = mask & (valid[:, None] | (order[-new:, None] == order))
    return mask.unsqueeze(1)


@dataclass
class ThoughtView:
    """Thought ``rows`` over ``text``, run packed, but each beside the others of its text in attention.

    ``own`` caches the rows' earlier tokens; None where a pass feeds whole rows.
    """

    text: TextView
    rows: Rows
    packing: Packing
    own: KeyValueCache | None = None

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, style: Style) -> Tensor:
        query, key, value = map(self._by_text, (query, key, value))
        if self.own is not None:
            key, value = self.own.write(layer, key, value, self.rows.first)
        output = attend(self.text.path, self.rows, query, key, value, self.text.cache[layer], style)
        packed = self.packing.pack(output.movedim(1, 3).unflatten(1, self.packing.shape[1:]))  # (m, S, H, C)
        return packed.flatten(0, 1).transpose(0, 1).unsqueeze(0)

    def _by_text(self, x: Tensor) -> Tensor:
        """(1, H, m*S, C) as (B, H, R*P, S, C)."""
        packed = x.squeeze(0).transpose(0, 1).unflatten(0, (-1, self.rows.tokens))  # (m, S, H, C)
        return self.packing.unpack(packed).flatten(1, 2).movedim(3, 1)


View = TextView | GrowingView | ThoughtView


@torch.compiler.disable  # or a compiled layer would be compiled anew for every view
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

    ``look`` is a view's `attend` method rather than the view, as FSDP2 hands layers copies of dataclass arguments.
    Raises ValueError for attention that a view cannot express, `check_decoder` finds what else a model does.
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
