"""Ask a model: prompts as token ids, left-padded batches of them, and continuations with thoughts and without."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling

NOT_FINITE = "the model's predictions are not finite: lower the learning rate"


@dataclass(frozen=True)
class AskedModel:
    """A model that is asked ``batch_size`` questions at a time; ``sampling`` is how its thoughts are sampled."""

    model: QuietStarForCausalLM
    tokenizer: PreTrainedTokenizerBase
    sampling: Sampling
    batch_size: int

    @property
    def ways(self) -> tuple[str, ...]:
        """The ways in which the model answers: with thoughts (or pauses), if it has them, and without."""
        return ("thought", "no_thought") if self.model.has_thoughts else ("no_thought",)

    @property
    def thought_room(self) -> int:
        """The positions that a thought takes with its [start] and [end]; 0 if the model has no thoughts."""
        return self.model.config.thought_tokens + 2 if self.model.has_thoughts else 0

    def write(
        self, prompts: list[list[int]], keys: Tensor, way: str, stop: list[str], samples: int = 1, **settings: object
    ) -> list[str]:
        """Continue each of the ``prompts`` (B) ``samples`` times, up to its end token or a ``stop`` string.

        ``keys`` (B,) name the prompts in the random draws; ``settings`` are those of `generation.generate`. Raises
        UserError if predictions are not finite.
        """
        tokenizer = self.tokenizer
        ids, mask = left_padded(prompts, tokenizer.pad_token_id, self.model.device)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id, "stop_strings": stop}
        settings |= ends | {"decode": tokenizer.decode, "text_keys": keys, "think": way == "thought"}
        whole = continued(self.model, ids, mask, samples=samples, thought_sampling=self.sampling, **settings)
        texts = []
        for i, new in enumerate(whole[:, ids.shape[1] :].tolist()):
            # decode the text with its prompt, as whether a token has a space depends on its place
            prompt = prompts[i // samples]
            both = prompt, prompt + before_end(new, tokenizer.eos_token_id)
            before, text = (tokenizer.decode(some, skip_special_tokens=True) for some in both)
            texts.append(before_stop(text[len(before) :], stop))
        return texts


def prompt_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The ids of a text to be continued, so without the end token that some tokenizers append."""
    ids = tokenizer(text)["input_ids"]
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids


def left_padded(rows: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and mask, both (B, N), of rows of different lengths, padded on the left."""
    longest = max(map(len, rows))
    ids = [[pad] * (longest - len(row)) + list(row) for row in rows]
    mask = [[0] * (longest - len(row)) + [1] * len(row) for row in rows]
    return tuple(torch.tensor(values, dtype=torch.long, device=device) for values in (ids, mask))


def before_end(ids: list[int], end: int | None) -> list[int]:
    """``ids`` up to the first ``end`` token."""
    return ids[: ids.index(end)] if end in ids else ids


def continued(model: QuietStarForCausalLM, ids: Tensor, mask: Tensor, **settings: object) -> Tensor:
    """Call `generation.generate`. Raises UserError if the model's predictions are not finite."""
    try:
        return model.generate(ids, mask, **settings)
    except FloatingPointError as error:
        raise UserError(NOT_FINITE) from error


def before_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the ``stop`` strings."""
    return min((text.partition(string)[0] for string in stop), key=len, default=text)
