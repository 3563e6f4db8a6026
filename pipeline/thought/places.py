"""Where to think: which positions of a text have a thought in a training step."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .head import IGNORED
from .layout import at


@dataclass(frozen=True)
class Places:
    """The positions that think in a step, in P slots for each text.

    ``positions``: (P,), 0 .. P-1 of every text, or (B, P), those of each in order. ``real`` (B, P): False for a slot
    without a thought of its own, whose text has fewer: its rows are not run (`rows.Packing`).
    """

    positions: Tensor
    real: Tensor

    def __getitem__(self, part: slice) -> "Places":
        return Places(self.positions[..., part], self.real[:, part])

    def of(self, values: Tensor) -> Tensor:
        """``values`` (B, R, N, ...) in the slots: (B, R, P, ...)."""
        return at(values.transpose(1, 2), self.positions).transpose(1, 2)

    def spread(self, values: Tensor, count: int) -> Tensor:
        """``values`` (B, R, P, ...) by position (B, R, ``count``, ...), 0 where none thinks."""
        texts, slots = self.real.nonzero(as_tuple=True)
        positions = self.positions[slots] if self.positions.ndim == 1 else self.positions[texts, slots]
        kept = positions < count
        spread = values.new_zeros(values.shape[0], count, values.shape[1], *values.shape[3:])
        spread[texts[kept], positions[kept]] = values.transpose(1, 2)[texts[kept], slots[kept]]
        return spread.transpose(1, 2)


def places_of(targets: Tensor, thinks: Tensor | None) -> Places:
    """The places of a step with `lookahead_targets` ``targets`` (B, N, A), for fewest slots.

    ``thinks`` (B, N): where to think; None: everywhere. A position without a target has nothing to think about.
    """
    wanted = thinking(targets, thinks)
    order = torch.arange(wanted.shape[1], device=wanted.device)
    counts = wanted.sum(1, keepdim=True)
    ends = torch.where(wanted, order + 1, 0).amax(1, keepdim=True)
    most, last = torch.stack([counts.max(), ends.max()]).clamp(min=1).tolist()
    if most == last:
        return Places(order[:last], wanted[:, :last])
    positions = torch.where(wanted, order, wanted.shape[1]).sort(1).values[:, :most]
    return Places(torch.minimum(positions, (ends - 1).clamp(min=0)), order[:most] < counts)


def likeliest(scores: Tensor, wanted: Tensor, counts: Tensor) -> Tensor:
    """Of the ``wanted`` positions (B, N) those with a text's highest ``scores`` (B, N), ``counts`` (B,) of each."""
    ranks = scores.masked_fill(~wanted, -torch.inf).argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return wanted & (ranks < counts.unsqueeze(1))


def thinking(targets: Tensor, thinks: Tensor | None) -> Tensor:
    """Which positions (B, N) think: those of ``thinks`` that have any of the ``targets`` (B, N, A)."""
    wanted = (targets != IGNORED).any(-1)
    return wanted if thinks is None else wanted & thinks
