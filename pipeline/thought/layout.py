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
        return values.index_select(1, positions)
    texts = torch.arange(len(values), device=values.device).unsqueeze(1)
    found = values.flatten(0, 1).index_select(0, (texts * values.shape[1] + positions).flatten())
    return found.unflatten(0, positions.shape)


def ahead(values: Tensor, steps: int, fill: float | int, positions: Tensor | None = None) -> Tensor:
    """The ``values`` (B, N, ...) at i + k, k < ``steps``, for each of ``positions`` i: (B, P, steps, ...).

    ``positions`` are as in `at`; None: all N. Past the end of a text it is ``fill``.
    """
    count = values.shape[1]
    padding = values.new_full((len(values), steps - 1, *values.shape[2:]), fill)
    values = torch.cat([values, padding], dim=1)
    shifted = (values[:, k : k + count] for k in range(steps))
    return torch.stack([some if positions is None else at(some, positions) for some in shifted], dim=2)
