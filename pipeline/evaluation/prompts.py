"""Ask a model: prompts as token ids, left-padded batches of them, and what follows with thoughts and without."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.evaluation.donors import ENDED, SKIPPED, as_input, sampled
from pipeline.evaluation.names import GATED, MEAN, MEAN_SAMPLES, NO_THOUGHT, SAMPLED, THOUGHT
from pipeline.models.prompts import left_padded
from pipeline.thought.generation import SAMPLES_APART, continue_texts
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling

HELD_LOGITS = 2**25  # in memory at once where texts are scored: 128 MiB in float32
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
        return (THOUGHT, NO_THOUGHT) if self.model.has_thoughts else (NO_THOUGHT,)

    @property
    def direct_ways(self) -> tuple[str, ...]:
        """The ways in which it answers a question directly: also gated; one that never trained is asked in two more."""
        never_trained = self.model.samples_thoughts and not self.model.objective.trains
        gated = () if self.model.gate is None else (GATED,)
        return (*self.ways, *gated, *((SAMPLED, MEAN) if never_trained else ()))

    @torch.no_grad()
    def predict(
        self, texts: list[list[int]], keys: list[int], places: Sequence[int], way: str, given: list | None = None
    ) -> tuple[Tensor, Sequence[np.ndarray] | None]:
        """Logits (B, P, V) after P ``places`` in each of B texts, and the thoughts there.

        ``places`` count from the texts' ends, where -1 is the last token. ``way``: with a thought, without, with one
        where the gate says so (`SKIPPED` stands for each that it did not want), with one sampled at temperature 1, or
        the mean of the predictions of 16 of those. ``given``: thoughts (P, K) of each text, as in `donors`, in the
        place of the model's own. Thoughts are None for pauses, for predictions without thoughts, and for the mean of
        16. ``keys`` (B,) name the texts in the draws. Raises UserError if predictions are not finite.
        """
        ids, mask = left_padded(texts, self.tokenizer.pad_token_id, self.model.device)
        positions = torch.tensor([ids.shape[1] + place for place in places], device=ids.device)
        keys = torch.tensor(keys, device=ids.device)
        thoughts, thinker, sampling = given, self.model.thinker, self.sampling
        if way in (SAMPLED, MEAN):
            sampling = replace(sampling, temperature=1.0)
        if way == NO_THOUGHT:
            logits = thinker.decoder.head.logits(thinker.decoder.read(ids, mask)[0][:, positions])
        elif way == MEAN:
            text, logits = thinker.read(ids, mask, keys), torch.tensor(-torch.inf, device=ids.device)
            for sample in range(MEAN_SAMPLES):
                again = replace(text, text_keys=keys + SAMPLES_APART * sample)
                talk = thinker.sample_and_talk(again, positions, sampling)[1]
                mixed = thinker.mixing_head.mix(text.hidden[:, positions], talk)[0]
                logits = logits.logaddexp(thinker.decoder.head.logits(mixed).float().log_softmax(-1))
        else:
            thought_ids = None if given is None else as_input(given, self.model)
            options = {"thought_ids": thought_ids, "sampling": sampling, "text_keys": keys, "positions": positions}
            output = self.model(ids, mask, **options)
            logits = output.logits
            if output.thoughts is not None:
                thoughts = sampled(output.thoughts)
            if way == GATED:
                wanted = thinker.wants(output.gate)
                logits = torch.where(wanted.unsqueeze(-1), logits, output.base_logits)
                some = np.full((*wanted.shape, 1), ENDED) if thoughts is None else thoughts
                thoughts = np.where(wanted.unsqueeze(-1).cpu().numpy(), some, SKIPPED)
        if not logits.isfinite().all():
            raise UserError(NOT_FINITE)
        return logits.float(), thoughts

    def continuations(
        self, prompts: Sequence[Sequence[int]], keys: Tensor, think: bool, stop: Sequence[str], **settings: object
    ) -> list[list[int]]:
        """Return the ids that follow each of the ``prompts`` (B), up to its end token or just past a ``stop`` string.

        ``keys`` (B,) name the prompts in the random draws; ``settings`` are those of `continue_texts`. Raises
        UserError if predictions are not finite.
        """
        end, pad = self.tokenizer.eos_token_id, self.tokenizer.pad_token_id
        ids, mask = left_padded(prompts, pad, self.model.device)
        settings |= {"text_keys": keys, "think": think, "thought_sampling": self.sampling, "stop_strings": stop}
        settings |= {"eos_token_id": end, "pad_token_id": pad, "decode": self.tokenizer.decode}
        try:
            written = continue_texts(self.model.thinker, ids, mask, **settings)[:, ids.shape[1] :].tolist()
        except FloatingPointError as error:
            raise UserError(NOT_FINITE) from error
        return [new[: new.index(end)] if end in new else new for new in written]

    def write(
        self, prompts: list[list[int]], keys: Tensor, way: str, stop: list[str], samples: int = 1, **settings: object
    ) -> list[str]:
        """Return ``samples`` `continuations` of each prompt as texts, up to the first stop string."""
        written = self.continuations(prompts, keys, way == THOUGHT, stop, samples=samples, **settings)
        return [before_stop(self.text(prompts[i // samples], new), stop) for i, new in enumerate(written)]

    def text(self, prompt: list[int], new: list[int]) -> str:
        """The text of ``new`` ids, decoded with their prompt: whether a token has a space depends on its place."""
        before, whole = (self.tokenizer.decode(ids, skip_special_tokens=True) for ids in (prompt, prompt + new))
        return whole[len(before) :]


def before_stop(text: str, stop: Sequence[str]) -> str:
    """``text`` up to the first of the ``stop`` strings."""
    return min((text.partition(string)[0] for string in stop), key=len, default=text)
