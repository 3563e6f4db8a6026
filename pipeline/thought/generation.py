"""Write text with a thought before each token: only the newest position thinks, on cached keys and values.

`ThoughtGenerationMixin` is transformers' own `generate`, for users. `continue_texts` is the evaluation's: its draws
depend on a text and its key alone, never on the rest of the batch, and texts that have ended leave the batch.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessorList, StoppingCriteriaList
from transformers.generation.utils import GenerateDecoderOnlyOutput

from .head import ban
from .layout import pads_before_end, text_position_ids
from .sampler import Sampling, sample
from .thinking import Thinker
from .views import GrowingView, KeyValueCache

GREEDY = Sampling(temperature=0.0)
GATE = "gate"  # think where the model's gate says so
# where to think: everywhere, nowhere, `GATE`, or what a rule says of the texts so far: from ids (B, N) to booleans (B,)
Think = bool | str | Callable[[Tensor], Tensor]
TEXT_STEP = -1  # the step in the draws of text tokens; those of thoughts are 0 .. K-1
ENDED_SHARE = 0.25  # remove ended texts from the batch only once this share has ended: removing copies the cache
SAMPLES_APART = 2**40  # between the text keys of one prompt's samples: more than there are prompts


@torch.no_grad()
def continue_texts(
    thinker: Thinker,
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 20,
    sampling: Sampling = GREEDY,
    thought_sampling: Sampling = GREEDY,
    samples: int = 1,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    stop_strings: Sequence[str] = (),
    decode: Callable[[list[int]], str] | None = None,
    text_keys: Tensor | None = None,
    think: Think = True,
) -> Tensor:
    """Continue each of the left-padded prompts ``input_ids`` (B, N) ``samples`` times: (B * samples, N + new).

    The samples of a prompt stand next to each other. A continuation ends after ``max_new_tokens``, at ``eos_token_id``,
    or with the token that completes one of ``stop_strings`` in the new text; then ``pad_token_id`` follows. ``decode``
    turns ids into text (a tokenizer's method). The meta-tokens are never written. ``text_keys`` (B,) name the texts in
    the random draws (0 .. B-1 unless given): a continuation depends on its text and key, not on the rest of the batch.
    ``think``: before each token (True), where the model's gate (`GATE`) or a rule says so, or nowhere (`Think`).
    Without a thought, or without a mixing head, the base model's prediction alone is used. Raises ValueError where a
    prompt is empty or padded on the right, for `GATE` without a gate, for ``samples`` below 1, and for stop strings
    that are empty or without ``decode``; FloatingPointError where logits are not finite.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if samples < 1:
        raise ValueError(f"samples is {samples}, but must be at least 1")
    (texts, prompt), device = input_ids.shape, input_ids.device
    ends = Ending(eos_token_id, stop_strings, decode)
    keys = torch.arange(texts, device=device) if text_keys is None else text_keys.to(device)
    keys = (keys[:, None] + SAMPLES_APART * torch.arange(samples, device=device)).flatten()

    # the prompts are read once, and then repeated for their samples
    decoder, thinks = thinker.decoder, think and thinker.mixing_head is not None
    writer = Writer(thinker, attention_mask, max_new_tokens, thought_sampling if thinks else None, think)
    state = writer.read(input_ids)
    repeated = torch.arange(texts, device=device).repeat_interleave(samples)
    writer.select(repeated)
    state, done = state[repeated], torch.zeros_like(keys, dtype=torch.bool)
    written = F.pad(input_ids[repeated], (0, max_new_tokens), value=pad_token_id)
    active = torch.arange(len(written), device=device)  # row r of every tensor below is text active[r]
    for stop in range(prompt + 1, prompt + max_new_tokens + 1):
        if stop > prompt + 1:
            state = writer.read(written[active, stop - 2 : stop - 1])
        chance = sampling.chances(keys, 1, writer.newest, TEXT_STEP)[:, 0, 0]
        predicting = writer.think(state, keys)
        new, entropy = sample(decoder.head, predicting, thinker.banned, sampling, chance)
        if not entropy.isfinite().all():
            raise FloatingPointError("logits are not finite")
        written[active, stop - 1] = new.masked_fill(done, pad_token_id)
        done = done | ends.at(written[active, max(prompt, stop - ends.longest) : stop])
        writer.end(done)
        if done.all():
            return written[:, :stop]
        if done.sum() >= ENDED_SHARE * len(done):
            left = (~done).nonzero().squeeze(1)
            writer.select(left)
            active, keys, done = active[left], keys[left], done[left]
    return written


class Ending:
    """What ends a continuation: ``eos``, or a token that completes a stop string in the new text.

    Such a string is within the ``longest`` newest tokens. Raises ValueError for stop strings that are empty or without
    ``decode``.
    """

    def __init__(self, eos: int | None, stop_strings: Sequence[str], decode: Callable[[list[int]], str] | None):
        if stop_strings and decode is None:
            raise ValueError("stop strings need decode, which turns token ids into text")
        if not all(stop_strings):
            raise ValueError("a stop string is empty")
        self._eos, self._strings, self._decode = eos, stop_strings, decode
        # a byte-level token may be one byte of a character's four
        self.longest = 4 * max(map(len, stop_strings), default=0) + 4

    def at(self, ids: Tensor) -> Tensor:
        """Which of the texts whose newest new tokens are ``ids`` (B, M) end with the last of them: (B,)."""
        ends = torch.zeros_like(ids[:, -1], dtype=torch.bool) if self._eos is None else ids[:, -1] == self._eos
        if not self._strings:
            return ends
        stopped = [any(string in text for string in self._strings) for text in map(self._decode, ids.tolist())]
        return ends | torch.tensor(stopped, device=ids.device)


class ThoughtGenerationMixin(GenerationMixin):
    """transformers' `generate` for a `QuietStarForCausalLM`."""

    _supported_generation_modes = ("greedy_search", "sample")

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """transformers makes no cache: `Writer` has its own."""
        return False

    def generate(
        self,
        *inputs: object,
        think: Think = True,
        thought_sampling: Sampling | float = GREEDY,
        **settings: object,
    ) -> "Tensor | ThoughtOutput":
        """transformers' `GenerationMixin.generate`, with its arguments; a thought comes before each token written.

        ``think``: before each token (True), where the model's gate says so ("gate"), where a function of the texts so
        far says so (from ids (B, N), padded on the left, to booleans (B,): `pipeline.data.marker.ends_with` makes one),
        or nowhere; elsewhere the base model's prediction alone is used. With ``return_dict_in_generate`` the result has
        the share of the tokens before which there was a thought, as ``thought_share``.

        ``thought_sampling``: how thoughts are drawn; a number is the temperature, 0 greedy. A seed from torch's
        generator is added to its own, so that `torch.manual_seed` makes thoughts and text the same again. Meta-tokens
        are never written. Keys and values are always cached, by this call alone. Raises ValueError for what needs
        several continuations of a text at once (beams, assistants), for attentions and hidden states, for guidance and
        position ids, for a gate that the model has not, for any other ``think`` or ``thought_sampling``, and where a
        prompt is empty or padded on the right; FloatingPointError where logits are not finite.
        """
        if not callable(think) and think not in (True, False, GATE):
            raise ValueError(f"think is {think!r}, but must be True, False, {GATE!r} or a function of the texts so far")
        if not isinstance(thought_sampling, Sampling):
            if not isinstance(thought_sampling, int | float) or thought_sampling < 0:
                raise ValueError(f"thought_sampling is {thought_sampling!r}, but must be a temperature of at least 0")
            thought_sampling = Sampling(float(thought_sampling))
        return super().generate(*inputs, think=think, thought_sampling=thought_sampling, **settings)

    def _sample(
        self,
        input_ids: Tensor,
        logits_processor: LogitsProcessorList,
        stopping_criteria: StoppingCriteriaList,
        generation_config: GenerationConfig,
        attention_mask: Tensor | None = None,
        think: Think = True,
        thought_sampling: Sampling = GREEDY,
        **settings: object,
    ) -> "Tensor | ThoughtOutput":
        """transformers' loop over new tokens; a `Writer`, handed on to `forward`, predicts each."""
        if generation_config.output_attentions or generation_config.output_hidden_states:
            raise ValueError("generate gives no attentions and no hidden states: a token has those of K + 1 passes")
        if generation_config.guidance_scale not in (None, 1):
            raise ValueError("guidance_scale needs a prediction without the prompt, which generate does not make")
        if settings.get("position_ids") is not None:
            raise ValueError("generate takes no position_ids: positions follow from the attention mask")
        if thought_sampling.temperature > 0:
            thought_sampling = replace(thought_sampling, seed=thought_sampling.seed + new_seed())
        settings.pop("tokenizer", None)  # that of stop strings, which are among the criteria
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        more = generation_config.max_length - input_ids.shape[1]
        thinks = think and self.has_thoughts
        writer = Writer(self.thinker, mask.to(self.device), more, thought_sampling if thinks else None, think)
        criteria = _Watched(stopping_criteria, writer)
        output = super()._sample(input_ids, logits_processor, criteria, generation_config, writer=writer, **settings)
        if isinstance(output, Tensor):
            return output
        return ThoughtOutput(**output, thought_share=writer.thought_share)

    def prepare_inputs_for_generation(
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        think: Think = True,
        thought_sampling: Sampling = GREEDY,
        writer: "Writer | None" = None,
        is_first_iteration: bool = False,
        use_cache: bool = True,
    ) -> dict[str, object]:
        """`forward`'s arguments for the next token: what the ``writer`` has not read."""
        return {"input_ids": (input_ids if is_first_iteration else input_ids[:, -1:]).to(self.device), "writer": writer}


@dataclass
class ThoughtOutput(GenerateDecoderOnlyOutput):
    """transformers' result of `generate`, and ``thought_share`` (): the share of tokens that a thought came before."""

    thought_share: Tensor | None = None


class _Watched(StoppingCriteriaList):
    """Stopping criteria that tell a writer which texts have ended."""

    def __init__(self, criteria: StoppingCriteriaList, writer: "Writer"):
        super().__init__(criteria)
        self._writer = writer

    def __call__(self, *arguments: object, **settings: object) -> Tensor:
        done = super().__call__(*arguments, **settings)
        self._writer.end(done)
        return done


def new_seed() -> int:
    """A seed from torch's generator; each process has its own, also where generators agree, as the HF Trainer's do."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    return int(torch.randint(2**62, (), device="cpu")) + rank


class Writer:
    """Texts that grow by a token at a time, with a thought after each, or without thoughts if ``sampling`` is None.

    A thought at the newest position is an ordinary continuation of the text: it is written to the same cache, after
    the text, and the next true token is written over it. ``[start]`` is read together with the true token before it and
    ``[end]`` with the thought's last token, so a token costs K + 1 passes, also where a thought ends itself before;
    pauses are known beforehand and cost one. Where the gate or a rule says where to ``think``, the K passes after
    ``[start]`` are run for the texts that do alone, and not at all where there are none. Raises ValueError where
    a text is empty or padded on the right, and for a thinker without the gate.
    """

    def __init__(
        self,
        thinker: Thinker,
        attention_mask: Tensor,
        max_new_tokens: int,
        sampling: Sampling | None,
        think: Think = True,
    ):
        if think == GATE and thinker.gate is None:
            raise ValueError("think is 'gate', but this model has no gate: train one with train.gate")
        if attention_mask.shape[1] == 0 or not attention_mask[:, -1].all():
            raise ValueError("a prompt to continue needs at least one token, and padding on its left side only")
        self._thinker, self._sampling = thinker, sampling
        more = max_new_tokens + thinker.layout.thought_tokens + 2
        self._mask = F.pad(attention_mask, (0, more), value=1)
        self._position_ids = text_position_ids(self._mask, self._mask)
        self._padded = pads_before_end(attention_mask)
        self._length = 0  # true tokens so far
        self._cache = KeyValueCache(self._mask.shape[1])
        self._where = None if isinstance(think, bool) else think
        self._texts = attention_mask.new_empty(len(attention_mask), 0)  # token ids so far, kept for a rule
        self._going = torch.ones_like(self._mask[:, 0], dtype=torch.bool)  # texts that have not ended
        self._tokens, self._thoughts = self._going.new_zeros(2, dtype=torch.long)  # so far, of texts that go on

    @property
    def newest(self) -> Tensor:
        """Position ids (B, 1) of the newest true tokens."""
        return self._position_ids[:, self._length - 1 : self._length]

    def predict(self, input_ids: Tensor) -> Tensor:
        """Read true tokens (B, M); the next one's logits (B, 1, V), those of meta-tokens at -1e10.

        The texts are named 0 .. B-1 in the draws of thoughts. Raises FloatingPointError for logits that are not finite.
        """
        decoder, keys = self._thinker.decoder, torch.arange(len(input_ids), device=input_ids.device)
        logits = decoder.head.logits(self.think(self.read(input_ids), keys))
        if not logits.isfinite().all():
            raise FloatingPointError("logits are not finite")
        return ban(logits, self._thinker.banned).unsqueeze(1)

    def select(self, texts: Tensor) -> None:
        """Go on with these of the texts, by index (repeats allowed)."""
        self._mask, self._position_ids = self._mask[texts], self._position_ids[texts]
        self._going, self._texts = self._going[texts], self._texts[texts]
        self._cache.select(texts)

    def end(self, done: Tensor) -> None:
        """Of the texts, these (B,) have ended: what is predicted for them does not count."""
        self._going = self._going & ~done.to(self._going.device)

    @property
    def thought_share(self) -> Tensor:
        """The share () of the tokens so far that a thought came before."""
        return self._thoughts / self._tokens

    def read(self, input_ids: Tensor) -> Tensor:
        """Read true tokens (B, M); return the state after the newest one (B, 1, D), without thoughts.

        With thoughts, ``[start]`` is read too, and its state comes second: (B, 2, D).
        """
        embeddings = self._thinker.decoder.embed(input_ids)
        self._length += input_ids.shape[1]
        if callable(self._where):
            self._texts = torch.cat([self._texts, input_ids], dim=1)
        if self._sampling is None:
            return self._run(embeddings, thought=0)[:, -1:]
        return self._run(_append(embeddings, self._thinker.start), thought=1)[:, -2:]

    def think(self, state: Tensor, keys: Tensor) -> Tensor:
        """The state (B, D) that predicts the next true token, after a thought, from what `read` returned."""
        self._tokens = self._tokens + self._going.sum()
        if self._sampling is None:
            return state[:, 0]
        base, talk = state.unbind(1)
        thinks = self._going
        if callable(self._where):
            thinks = thinks & self._where(self._texts).to(thinks.device)
        elif self._where == GATE:
            thinks = thinks & self._thinker.wants(self._thinker.gate(base))
        self._thoughts = self._thoughts + thinks.sum()
        if self._where is None or thinks.all():
            return self._think(base, talk, keys)
        rows = thinks.nonzero().squeeze(1)
        if len(rows) == 0:
            return base
        part = copy(self)  # with a cache of its own: of these texts, and only for this thought
        part._cache = copy(self._cache)
        part.select(rows)
        return base.index_copy(0, rows, part._think(base[rows], talk[rows], keys[rows]))

    def _think(self, base: Tensor, talk: Tensor, keys: Tensor) -> Tensor:
        """The states (B, D) after a thought, from those without one and at ``[start]``."""
        if self._thinker.pauses is not None:
            pauses = self._thinker.pauses.expand(len(base), -1, -1)
            talk = self._run(_append(pauses, self._thinker.end), thought=pauses.shape[1] + 2)[:, -1]
        else:
            _, talk = self._thinker.think(
                talk,
                lambda tokens, first: self._run(tokens, thought=first + tokens.shape[1]),
                lambda step: self._sampling.chances(keys, 1, self.newest, step)[:, 0, 0],
                self._sampling,
            )
        return self._thinker.mixing_head.mix(base, talk)[0]

    def _run(self, embeddings: Tensor, thought: int) -> Tensor:
        """States of these newest tokens (B, M, D), which end with ``thought`` tokens of a thought."""
        stop = self._length + thought
        position_ids, valid = self._position_ids[:, :stop], self._mask[:, :stop].bool() if self._padded else None
        view = GrowingView(self._cache, position_ids, valid)
        return self._thinker.decoder.run(embeddings, position_ids[:, -embeddings.shape[1] :], view)


def _append(embeddings: Tensor, token: Tensor) -> Tensor:
    """``embeddings`` (B, M, D) and then ``token`` (D,): (B, M + 1, D)."""
    return torch.cat([embeddings, token.expand(len(embeddings), 1, -1)], dim=1)
