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

    def continuations(
        self, prompts: Sequence[Sequence[int]], keys: Tensor, think: bool, stop: Sequence[str], **settings: object
    ) -> list[list[int]]:
        """Return the ids that follow each of the ``prompts`` (B), up to its end token or just past a ``stop`` string.

        ``keys`` (B,) name the prompts in the random draws; ``settings`` are those of `generation.generate`. Raises
        UserError if predictions are not finite.
        """
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ids, mask = left_padded(prompts, pad, self.model.device)
        settings |= {"text_keys": keys, "think": think, "thought_sampling": self.sampling, "stop_strings": stop}
        settings |= {"eos_token_id": end, "pad_token_id": pad, "decode": self.tokenizer.decode}
        try:
            written = self.model.generate(ids, mask, **settings)[:, ids.shape[1] :].tolist()
        except FloatingPointError as error:
            raise UserError(NOT_FINITE) from error
        return [new[: new.index(end)] if end in new else new for new in written]

    def write(
        self, prompts: list[list[int]], keys: Tensor, way: str, stop: list[str], samples: int = 1, **settings: object
    ) -> list[str]:
        """Return ``samples`` `continuations` of each prompt as texts, up to the first stop string."""
        texts = []
        written = self.continuations(prompts, keys, way == "thought", stop, samples=samples, **settings)
        for i, new in enumerate(written):
            # decode the text with its prompt, as whether a token has a space depends on its place
            prompt = prompts[i // samples]
            before, text = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
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


def before_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the ``stop`` strings."""
    return min((text.partition(string)[0] for string in stop), key=len, default=text)
