"""The tokens of a thought row and their position ids (paper, section 4.2 and figure 2)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """The row ``[start] t_1 .. t_K [end] x_{i+1} .. x_{i+A-1}`` of a thought after text position i.

    A thought that ended itself has fewer tokens of its own (``lengths``); ``[end]`` and the true tokens then stand that
    much earlier, and the slots left over at the end of its row are seen by no token that counts.
    """

    thought_tokens: int  # K
    lookahead: int  # A

    @property
    def row_tokens(self) -> int:
        """T, the tokens of a whole row."""
        return self.thought_tokens + 2 + self.lookahead - 1

    @property
    def sampling_outputs(self) -> slice:
        """The outputs that give the distributions of t_1 .. t_K; the first is the one at ``[start]``."""
        return slice(0, self.thought_tokens)

    def shorten(self, rows: Tensor, lengths: Tensor | None) -> Tensor:
        """Close the gap in ``rows`` (B, R, P, T, D) behind thoughts of ``lengths`` (B, R, P); None: all are whole."""
        if lengths is None:
            return rows
        slots, lengths = torch.arange(self.row_tokens, device=rows.device), lengths.unsqueeze(-1)
        source = torch.where(slots > lengths, slots + self.thought_tokens - lengths, slots)
        return rows.take_along_dim(source.clamp(max=self.row_tokens - 1).unsqueeze(-1), dim=-2)

    def talking(self, states: Tensor, lengths: Tensor | None) -> Tensor:
        """The states (..., A, D) that predict x_{i+1} .. x_{i+A}, of a row's (..., T, D); the first is at ``[end]``.

        ``lengths`` (...): those of the thoughts; None: all are whole.
        """
        if lengths is None:
            return states[..., self.thought_tokens + 1 :, :]
        slots = lengths.unsqueeze(-1) + 1 + torch.arange(self.lookahead, device=states.device)
        return states.take_along_dim(slots.unsqueeze(-1), dim=-2)


def text_position_ids(attention_mask: Tensor | None, input_ids: Tensor) -> Tensor:
    """Position ids (B, N): 0 at each text's first real token, on whichever side the text is padded."""
    if attention_mask is None:
        return torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
    return (attention_mask.long().cumsum(1) - 1).clamp(min=0)


def pads_before_end(attention_mask: Tensor | None) -> bool:
    """Whether a text has padding before its last real token. No real token sees padding after that."""
    return attention_mask is not None and not bool((attention_mask.long().diff(dim=1) <= 0).all())


def row_position_ids(position_ids: Tensor, positions: Tensor, first: int, count: int) -> Tensor:
    """Position ids (B, P, S) of row tokens ``first .. first + count - 1`` after the text at ``positions``.

    A thought pushes the true tokens after it further along: row token s of position i has position id i + 1 + s.
    """
    steps = torch.arange(first, first + count, device=position_ids.device)
    return at(position_ids, positions).unsqueeze(-1) + 1 + steps


def at(values: Tensor, positions: Tensor) -> Tensor:
    """``values`` (B, N, ...) at ``positions``, (P,) of every text or (B, P) of each: (B, P, ...)."""
    if positions.ndim == 1:
        return values[:, positions]
    texts = torch.arange(len(values), device=values.device).unsqueeze(1)
    return values.flatten(0, 1)[texts * values.shape[1] + positions]


def ahead_at(values: Tensor, positions: Tensor, steps: int, fill: float | int) -> Tensor:
    """`ahead` at ``positions``, as in `at`: (B, P, steps, ...). Nothing is computed for other positions."""
    padding = values.new_full((values.shape[0], steps - 1, *values.shape[2:]), fill)
    places = positions.unsqueeze(-1) + torch.arange(steps, device=positions.device)
    found = at(torch.cat([values, padding], dim=1), places.flatten(-2))
    return found.unflatten(1, (-1, steps))


def ahead(values: Tensor, steps: int, fill: float | int) -> Tensor:
    """For each position i, the ``values`` (B, N, ...) at i + k, k < ``steps``: (B, N, steps, ...); past N, ``fill``."""
    padding = values.new_full((values.shape[0], steps - 1, *values.shape[2:]), fill)
    windows = torch.cat([values, padding], dim=1).unfold(1, steps, 1)  # the window is unfolded as the last axis
    return windows.movedim(-1, 2)
