"""Which tokens a thought row may see, how a layer scores them, and the interface of thought attention (section 4.2)."""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Style:
    """A layer's attention settings: the scale of its scores, its sliding window in tokens and the cap on its scores."""

    scaling: float
    window: int | None
    softcap: float | None

    def cap(self, scores: Tensor) -> Tensor:
        return scores if self.softcap is None else torch.tanh(scores / self.softcap) * self.softcap


@dataclass(frozen=True)
class Packing:
    """The m of B * R * P rows that a pass computes, one after the other, as all of the decoder but attention runs them.

    ``shape``: (B, R, P). ``index`` (m,): which rows, those of the slots that are ``real`` (B, P); None: all of them.
    """

    shape: tuple[int, int, int]
    index: Tensor | None = None
    real: Tensor | None = None

    @classmethod
    def of(cls, real: Tensor, rationales: int) -> "Packing":
        """The rows of those of P slots that are ``real`` (B, P); where none is, all, as a pass needs some."""
        shape = len(real), rationales, real.shape[1]
        index = real.unsqueeze(1).expand(shape).flatten().nonzero().squeeze(1)
        return cls(shape, index, real) if 0 < len(index) < math.prod(shape) else cls(shape)

    def pack(self, values: Tensor) -> Tensor:
        """``values`` (B, R, P, ...) of the packed rows: (m, ...). Axes of size 1 stand for B, R or P equal ones."""
        flat = values.expand(*self.shape, *values.shape[3:]).flatten(0, 2)
        return flat if self.index is None else flat.index_select(0, self.index)

    def unpack(self, values: Tensor) -> Tensor:
        """``values`` (m, ...) where they belong: (B, R, P, ...), 0 elsewhere."""
        if self.index is not None:
            values = values.new_zeros(math.prod(self.shape), *values.shape[1:]).index_copy(0, self.index, values)
        return values.unflatten(0, self.shape)


@dataclass(frozen=True)
class Rows:
    """Thought rows that start after the text at ``positions``; a pass feeds S tokens of each, from ``first`` on.

    ``positions``: (P,), those of every text, or (B, P), those of each; they do not fall.
    ``position_ids`` (B, P, S): those of the S tokens. ``text_position_ids`` (B, N). ``valid`` (B, N): False for
    padding; None if no text has padding before its end. ``real`` (B, P): False for positions whose rows nobody needs,
    so that anything may come out; None: all are real.
    """

    positions: Tensor
    position_ids: Tensor
    text_position_ids: Tensor
    valid: Tensor | None = None
    first: int = 0
    real: Tensor | None = None

    @cached_property
    def at(self) -> tuple[tuple[int, ...], ...]:
        """The positions as numbers, for each text or once for all: read once a pass, as that waits for the device."""
        return tuple(map(tuple, self.by_text.tolist()))

    @property
    def by_text(self) -> Tensor:
        """The positions (1 or B, P)."""
        return self.positions if self.positions.ndim == 2 else self.positions.unsqueeze(0)

    @property
    def tokens(self) -> int:
        """S."""
        return self.position_ids.shape[2]

    def is_plain(self, style: Style) -> bool:
        """Whether every row sees all of the text up to its position, and scores are not capped."""
        furthest = self.text_position_ids.shape[1] + self.first + self.tokens
        return self.valid is None and style.softcap is None and (style.window is None or style.window >= furthest)

    def prefix_mask(self, window: int | None) -> Tensor:
        """Whether a row token sees a text token: (B or 1, P, S or 1, N)."""
        order = torch.arange(self.text_position_ids.shape[1], device=self.positions.device)
        mask = (self.by_text.unsqueeze(-1) >= order).unsqueeze(2)
        if window is not None:
            mask = mask & (self.position_ids.unsqueeze(-1) - self.text_position_ids[:, None, None] < window)
        if self.valid is not None:
            mask = mask & self.valid[:, None, None]
        return mask

    def own_mask(self, window: int | None) -> Tensor:
        """Whether row token ``first + s`` sees row token t: (S, first + S)."""
        order = torch.arange(self.first + self.tokens, device=self.positions.device)
        distance = order[self.first :, None] - order
        return (distance >= 0) if window is None else (distance >= 0) & (distance < window)


class Attend(Protocol):
    """A way to compute thought attention."""

    def __call__(
        self, rows: Rows, query: Tensor, key: Tensor, value: Tensor, prefix: tuple[Tensor, Tensor], style: Style
    ) -> Tensor:
        """The attention's output (B, H, R*P, S, C), from one softmax over the shared text and the row's own tokens.

        ``query`` (B, H, R*P, S, C); ``key``, ``value`` (B, G, R*P, first + S, C); ``prefix``: the text's keys and
        values (B, G, N, C).
        """
