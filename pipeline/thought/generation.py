"""Write text with a thought before each token: only the newest position thinks, on cached keys and values."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from .layout import pads_before_end, text_position_ids
from .sampler import Sampling, sample
from .views import GrowingView

if TYPE_CHECKING:
    from .model import QuietStarForCausalLM

GREEDY = Sampling(temperature=0.0)
TEXT_STEP = -1  # the step that a text token's own draw counts as; thoughts use 0 .. K-1
ENDED_SHARE = 0.25  # of the texts in a batch: when so many have ended they are taken out of it, which copies its cache
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
    think: bool = True,
) -> Tensor:
    """Continue each of the left-padded prompts ``input_ids`` (B, N) ``samples`` times: (B * samples, N + new).

    A continuation ends after ``max_new_tokens``, its ``eos_token_id``, or the token that completes one of
    ``stop_strings`` in its own text, as ``decode`` reads it (a tokenizer's ``decode``); ``pad_token_id`` follows. The
    meta-tokens are never written. ``text_keys`` (B,) name the texts in the draws (0 .. B-1 unless given): a text's name
    makes its continuations, whatever is in the batch. Without ``think`` the base prediction alone writes.
    Raises ValueError where a prompt is empty or padded on the right, and for stop strings without ``decode``;
    FloatingPointError where logits are not finite.
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
    writer = _Writer(model, attention_mask, max_new_tokens, thought_sampling if think else None)
    state = writer.read(model.decoder.embed(input_ids))
    keys, prompt = _sample_keys(text_keys.to(input_ids.device), samples), input_ids.shape[1]
    each = torch.arange(len(input_ids), device=input_ids.device).repeat_interleave(samples)
    writer.go_on(each)
    state, done = state[each], torch.zeros_like(keys, dtype=torch.bool)
    whole = F.pad(input_ids[each], (0, max_new_tokens), value=pad_token_id)
    writing = torch.arange(len(whole), device=whole.device)  # which texts the rows of all else here are
    for stop in range(prompt + 1, prompt + max_new_tokens + 1):
        if stop > prompt + 1:
            state = writer.read(model.decoder.embed(whole[writing, stop - 2 : stop - 1]))
        chance = sampling.chances(keys, 1, writer.newest, TEXT_STEP)[:, 0, 0]
        predicting = writer.think(state, keys)
        new, entropy = sample(model.decoder.head, predicting, model.config.banned, sampling, chance)
        if not entropy.isfinite().all():
            raise FloatingPointError("logits are not finite")
        whole[writing, stop - 1] = new.masked_fill(done, pad_token_id)
        done = ended(whole[writing, :stop], done)
        if done.all():
            return whole[:, :stop]
        if done.sum() >= ENDED_SHARE * len(done):
            left = (~done).nonzero().squeeze(1)
            writer.go_on(left)
            writing, keys, done = writing[left], keys[left], done[left]
    return whole


class _Writer:
    """Texts that grow by a token at a time, with a thought after each; with none where ``sampling`` of them is None.

    A thought at the newest position is an ordinary continuation of the text: it is written to the same cache, after
    the text, and the next true token is written over it. ``[start]`` goes in with the true token before it and
    ``[end]`` with the thought's last token, so a token costs K + 1 passes; pauses are known beforehand and cost one.
    """

    def __init__(
        self, model: "QuietStarForCausalLM", attention_mask: Tensor, max_new_tokens: int, sampling: Sampling | None
    ):
        self._model, self._sampling = model, sampling
        self._thinks = sampling is not None and model.has_thoughts
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
        """Read true tokens (B, M, D) and ``[start]``: states (B, 2, D) of the newest true token and of ``[start]``.

        Where nothing thinks there is no ``[start]``, and one state.
        """
        self._length += embeddings.shape[1]
        if not self._thinks:
            return self._run(embeddings, thought=0)[:, -1:]
        start = self._meta_token(self._model.start_embedding, embeddings)
        return self._run(torch.cat([embeddings, start], dim=1), thought=1)[:, -2:]

    def go_on(self, texts: Tensor) -> None:
        """Go on with these of the texts (indices), some of them maybe several times."""
        self._mask, self._position_ids = self._mask[texts], self._position_ids[texts]
        self._view = self._view.of(texts)

    def think(self, state: Tensor, keys: Tensor) -> Tensor:
        """The state (B, D) that predicts the next true token, after a thought, from what `read` gave."""
        if not self._thinks:
            return state[:, 0]
        base, start = state.unbind(1)
        talk = self._sample(start, keys) if self._model.samples_thoughts else self._pause(start)
        return self._model.mixing_head.mix(base, talk)[0]

    def _sample(self, last: Tensor, keys: Tensor) -> Tensor:
        """The state (B, D) at the end of a thought, sampled from the state (B, D) of ``[start]`` on."""
        model = self._model
        for step in range(model.config.thought_tokens):
            chance = self._sampling.chances(keys, 1, self.newest, step)[:, 0, 0]
            drawn, _ = sample(model.decoder.head, last, model.config.banned, self._sampling, chance)
            tokens = model.decoder.embed(drawn[:, None])
            if step == model.config.thought_tokens - 1:
                tokens = torch.cat([tokens, self._meta_token(model.end_embedding, tokens)], dim=1)
            last = self._run(tokens, thought=step + 1 + tokens.shape[1])[:, -1]
        return last

    def _pause(self, like: Tensor) -> Tensor:
        tokens = [self._meta_token(p, like) for p in (self._model.pause_embeddings, self._model.end_embedding)]
        return self._run(torch.cat(tokens, dim=1), thought=self._model.config.thought_tokens + 2)[:, -1]

    def _meta_token(self, parameter: Tensor, like: Tensor) -> Tensor:
        """A meta-token, or several (B, S, D), as they are used, for as many texts as ``like`` has."""
        tokens = parameter.view(-1, parameter.shape[-1])
        return (self._model.config.meta_token_scale * tokens).expand(len(like), -1, -1)

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
