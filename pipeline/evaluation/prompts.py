"""What asking a model takes, however it is asked: prompts in tokens, in batches, with thoughts and without."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.thought.model import QuietStarForCausalLM

NOT_FINITE = "the model's predictions are not finite: lower the learning rate"


def ways(model: QuietStarForCausalLM) -> tuple[str, ...]:
    """With thoughts (or pauses) and without, where the model has them."""
    return ("thought", "no_thought") if model.has_thoughts else ("no_thought",)


def thought_room(model: QuietStarForCausalLM) -> int:
    """The positions that a thought takes with its [start] and [end]; 0 where the model has none."""
    return model.config.thought_tokens + 2 if model.has_thoughts else 0


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text to be continued: without the end token that some tokenizers add."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask (B, N) of rows of different lengths, which end together."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return tuple(torch.tensor(values, dtype=torch.long, device=device) for values in (ids, mask))


def before_end(ids: list[int], end: int | None) -> list[int]:
    """``ids`` up to the first ``end`` token in them."""
    return ids[: ids.index(end)] if end in ids else ids


def continued(model: QuietStarForCausalLM, ids: Tensor, mask: Tensor, **settings: object) -> Tensor:
    """`generation.generate`. Raises UserError where the model's predictions are not finite."""
    try:
        return model.generate(ids, mask, **settings)
    except FloatingPointError as error:
        raise UserError(NOT_FINITE) from error


def before_stop(written: str, stop: Sequence[str]) -> str:
    """``written`` up to the first of the ``stop`` strings in it."""
    return min((written.partition(string)[0] for string in stop), key=len, default=written)
