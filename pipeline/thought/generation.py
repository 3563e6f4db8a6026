"""Write text with a thought before each token: only the newest position thinks, on cached keys and values."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pipeline.thought.attention import TextView
from pipeline.thought.layout import Layout, text_position_ids
from pipeline.thought.sampler import Sampling, ban, draw, uniforms

if TYPE_CHECKING:
    from pipeline.thought.model import QuietStarForCausalLM

GREEDY = Sampling(temperature=0.0)
TEXT_STEP = -1  # the step that a text token's own draw counts as; thoughts use 0 .. K-1


@torch.no_grad()
def generate(
    model: "QuietStarForCausalLM",
    input_ids: Tensor,
    attention_mask: Tensor | None = None,
    max_new_tokens: int = 20,
    sampling: Sampling = GREEDY,
    thought_sampling: Sampling = GREEDY,
    eos_token_id: int | None = None,
    pad_token_id: int = 0,
    text_keys: Tensor | None = None,
) -> Tensor:
    """Continue left-padded prompts ``input_ids`` (B, N): (B, N + new), ``pad_token_id`` after a text's end token.

    Stops after ``max_new_tokens`` or when every text has its ``eos_token_id``. The meta-tokens are never written.
    ``text_keys`` (B,) name the texts in the draws (0 .. B-1 unless given): a text's name makes its continuation.
    Raises ValueError where a prompt is empty or padded on the right.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if input_ids.shape[1] == 0 or not attention_mask[:, -1].all():
        raise ValueError("a prompt to continue needs at least one token, and padding on its left side only")
    done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
    if text_keys is None:
        text_keys = torch.arange(len(input_ids), device=input_ids.device)
    hidden, text = model.decoder.read(input_ids, attention_mask)
    for _ in range(max_new_tokens):
        logits = _thoughtful_logits(model, hidden[:, -1], text, input_ids, thought_sampling, text_keys)
        chance = uniforms(sampling.seed, text_keys, 1, text.position_ids[:, -1:], TEXT_STEP)[:, 0, 0]
        new = draw(ban(logits, model.banned), sampling.temperature, chance).masked_fill(done, pad_token_id)
        input_ids = torch.cat([input_ids, new[:, None]], dim=1)
        attention_mask = torch.cat([attention_mask, torch.ones_like(new[:, None])], dim=1)
        done = done | (new == eos_token_id) if eos_token_id is not None else done
        if done.all():
            break
        hidden, text = _read_next(model, new, attention_mask, text)
    return input_ids


def _read_next(
    model: "QuietStarForCausalLM", new: Tensor, attention_mask: Tensor, text: TextView
) -> tuple[Tensor, TextView]:
    """The text pass of one more token of each text."""
    position_ids = text_position_ids(attention_mask, attention_mask)
    text = text.extended(position_ids, attention_mask.bool())
    return model.decoder.run(model.decoder.embed(new[:, None]), position_ids[:, -1:], text), text


def _thoughtful_logits(
    model: "QuietStarForCausalLM",
    base: Tensor,
    text: TextView,
    input_ids: Tensor,
    sampling: Sampling,
    text_keys: Tensor,
) -> Tensor:
    """Next-token logits (B, V) after one thought at the newest position, whose text state is ``base`` (B, D)."""
    newest = torch.tensor([text.position_ids.shape[1] - 1], device=base.device)
    thoughts = model.think(text, newest, 1, sampling, text_keys)
    rows = model.run_thoughts(text, newest, thoughts.ids, input_ids, Layout(model.config.thought_tokens, lookahead=1))
    talk = rows[:, 0, 0, -1]
    mixed, _ = model.mixing_head.mix(base, talk)
    return model.decoder.predict(mixed)
