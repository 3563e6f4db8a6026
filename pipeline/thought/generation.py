"""Write text with a thought before each token: only the newest position thinks, on cached keys and values."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.thought.layout import pads_before_end, text_position_ids
from pipeline.thought.sampler import Sampling, sample
from pipeline.thought.views import GrowingView

if TYPE_CHECKING:
    from pipeline.thought.model import QuietStarForCausalLM

GREEDY = Sampling(temperature=0.0)
TEXT_STEP = -1  # the step that a text token's own draw counts as; thoughts use 0 .. K-1
SAMPLES_APART = 2**40  # between the names of one prompt's samples: more than there are prompts

Decode = Callable[[list[int]], str]


@torch.no_grad()
def generate(
    model: "QuietStarForCausalLM",
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 20,
    sampling: Sampling = GREEDY,
    thought_sampling: Sampling = GREEDY,
    samples: int = 1,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    stop_strings: Sequence[str] = (),
    decode: Decode | None = None,
    text_keys: Tensor | None = None,
) -> Tensor:
    """Continue each of the left-padded prompts ``input_ids`` (B, N) ``samples`` times: (B * samples, N + new).

    A continuation ends after ``max_new_tokens``, its ``eos_token_id``, or the token that completes one of
    ``stop_strings`` in its own text, as ``decode`` reads it (a tokenizer's ``decode``); ``pad_token_id`` follows. The
    meta-tokens are never written. ``text_keys`` (B,) name the texts in the draws (0 .. B-1 unless given): a text's name
    makes its continuations, whatever is in the batch.
    Raises ValueError where a prompt is empty or padded on the right, and for stop strings without ``decode``.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if input_ids.shape[1] == 0 or not attention_mask[:, -1].all():
        raise ValueError("a prompt to continue needs at least one token, and padding on its left side only")
    if samples < 1:
        raise ValueError(f"samples is {samples}, but must be at least 1")
    ended = _Ending(input_ids.shape[1], eos_token_id, stop_strings, decode)
    if text_keys is None:
        text_keys = torch.arange(len(input_ids), device=input_ids.device)
    writer = _Writer(model, attention_mask, max_new_tokens, thought_sampling)
    state = writer.read(model.decoder.embed(input_ids))
    keys, input_ids = _sample_keys(text_keys.to(input_ids.device), samples), input_ids.repeat_interleave(samples, 0)
    state, done = writer.repeat(state, samples), torch.zeros_like(keys, dtype=torch.bool)
    for count in range(max_new_tokens):
        if count:
            state = writer.read(model.decoder.embed(input_ids[:, -1:]))
        chance = sampling.chances(keys, 1, writer.newest, TEXT_STEP)[:, 0, 0]
        talk = writer.think(state, keys)
        new = sample(model.decoder.head, talk, model.banned, sampling, chance)[0].masked_fill(done, pad_token_id)
        input_ids = torch.cat([input_ids, new[:, None]], dim=1)
        done = ended(input_ids, done)
        if done.all():
            break
    return input_ids


class _Writer:
    """Texts that grow by a token at a time, with a thought after each.

    A thought at the newest position is an ordinary continuation of the text: it is written to the same cache, after
    the text, and the next true token is written over it. ``[start]`` goes in with the true token before it and
    ``[end]`` with the thought's last token, so a token costs K + 1 passes.
    """

    def __init__(self, model: "QuietStarForCausalLM", attention_mask: Tensor, max_new_tokens: int, sampling: Sampling):
        self._model, self._sampling = model, sampling
        more = max_new_tokens + model.config.thought_tokens + 2
        self._mask = F.pad(attention_mask, (0, more), value=1)
        self._position_ids = text_position_ids(self._mask, self._mask)
        self._padded = pads_before_end(attention_mask)
        self._length = 0  # true tokens so far
        self._view = GrowingView(self._mask.shape[1], self._position_ids)

    @property
    def newest(self) -> Tensor:
        """Position ids (B, 1) of the newest true tokens."""
        return self._position_ids[:, self._length - 1 : self._length]

    def read(self, embeddings: Tensor) -> Tensor:
        """Read true tokens (B, M, D) and ``[start]``: states (B, 2, D) of the newest true token and of ``[start]``."""
        self._length += embeddings.shape[1]
        start = self._meta_token(self._model.start_embedding, embeddings)
        return self._run(torch.cat([embeddings, start], dim=1), thought=1)[:, -2:]

    def repeat(self, state: Tensor, count: int) -> Tensor:
        """Go on with each text, and its ``state`` (B, ...), ``count`` times."""
        self._mask, self._position_ids = (x.repeat_interleave(count, 0) for x in (self._mask, self._position_ids))
        self._view = self._view.repeated(count)
        return state.repeat_interleave(count, 0)

    def think(self, state: Tensor, keys: Tensor) -> Tensor:
        """The state (B, D) that predicts the next true token, after a thought, from what `read` gave."""
        model, (base, last) = self._model, state.unbind(1)
        for step in range(model.config.thought_tokens):
            chance = self._sampling.chances(keys, 1, self.newest, step)[:, 0, 0]
            drawn, _ = sample(model.decoder.head, last, model.banned, self._sampling, chance)
            tokens = model.decoder.embed(drawn[:, None])
            if step == model.config.thought_tokens - 1:
                tokens = torch.cat([tokens, self._meta_token(model.end_embedding, tokens)], dim=1)
            last = self._run(tokens, thought=step + 1 + tokens.shape[1])[:, -1]
        return model.mixing_head.mix(base, last)[0]

    def _meta_token(self, parameter: Tensor, like: Tensor) -> Tensor:
        return (self._model.config.meta_token_scale * parameter).expand(len(like), 1, -1)

    def _run(self, embeddings: Tensor, thought: int) -> Tensor:
        """States of these newest tokens (B, M, D), after which the text has ``thought`` tokens of a thought."""
        stop = self._length + thought
        position_ids, valid = self._position_ids[:, :stop], self._mask[:, :stop].bool() if self._padded else None
        view = self._view.at(position_ids, valid)
        return self._model.decoder.run(embeddings, position_ids[:, -embeddings.shape[1] :], view)


def _sample_keys(text_keys: Tensor, samples: int) -> Tensor:
    """Names (B * samples,) of every prompt's samples; the first sample has its prompt's own name."""
    return (text_keys[:, None] + SAMPLES_APART * torch.arange(samples, device=text_keys.device)).flatten()


class _Ending:
    """Which texts have ended: by their end token, or by a stop string in what was written after the prompt."""

    def __init__(self, prompt: int, eos_token_id: int | None, stop_strings: Sequence[str], decode: Decode | None):
        if stop_strings and decode is None:
            raise ValueError("stop strings need decode, which turns token ids into text")
        if not all(stop_strings):
            raise ValueError("a stop string is empty")
        self._prompt, self._eos, self._strings, self._decode = prompt, eos_token_id, tuple(stop_strings), decode
        # a byte-level token may be one byte of a character's four: what completes a stop string is within these
        self._tail = 4 * max(map(len, self._strings), default=0) + 4

    def __call__(self, input_ids: Tensor, done: Tensor) -> Tensor:
        """Whether each text (B,) of ``input_ids`` (B, L) has ended, ``done`` ones among them."""
        if self._eos is not None:
            done = done | (input_ids[:, -1] == self._eos)
        if not self._strings:
            return done
        written = input_ids[:, max(self._prompt, input_ids.shape[1] - self._tail) :].tolist()
        stopped = [any(string in self._decode(ids) for string in self._strings) for ids in written]
        return done | torch.tensor(stopped, device=done.device)
