"""Every architecture's parallel thoughts equal thoughts run alone, and what cannot think so says so."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from pipeline.thought.decoder import UnsupportedDecoderError, build_decoder, check_decoder
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import IGNORED, Losses
from tests.thought.slow_reference import SlowQuietStar, SlowResult
from tests.thought.tiny import (
    ARCHITECTURES,
    GPT2,
    GPT2_SIZES,
    LLAMA,
    SIZES,
    base_model,
    config_of,
    error,
    quiet_star,
    random_ids,
    slow,
)

LENGTHS = (9, 7)  # the second text is padded on the right
TOKENS = max(LENGTHS)


@dataclass
class Run:
    """One step of the engine and of the slow reference, on the same weights, texts and thoughts."""

    model: QuietStarForCausalLM
    losses: Losses
    reference: SlowQuietStar
    expected: SlowResult


def padded_batch() -> tuple[Tensor, Tensor, Tensor]:
    ids = random_ids(len(LENGTHS), TOKENS)
    mask = (torch.arange(TOKENS) < torch.tensor(LENGTHS)[:, None]).long()
    return ids, mask, ids.masked_fill(mask == 0, IGNORED)


def run_both(model: QuietStarForCausalLM, rationales: int = 2) -> Run:
    ids, mask, labels = padded_batch()
    thoughts = random_ids(len(LENGTHS), rationales, TOKENS, model.config.thought_tokens, seed=2)
    losses = model(ids, mask, labels=labels, thought_ids=thoughts).losses
    losses.total.backward()
    reference = slow(model)
    texts = [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=True)]
    expected = reference.losses(texts, TOKENS, thoughts)
    expected.total.backward()
    return Run(model, losses, reference, expected)


def compare(run: Run, tolerance: float) -> None:
    for name in ("total", "base", "talk", "policy"):
        actual, expected = getattr(run.losses, name).item(), getattr(run.expected, name).item()
        assert actual == pytest.approx(expected, rel=tolerance), name
    compare_thoughts(run, tolerance)
    compare_gradients(run, tolerance)


def compare_thoughts(run: Run, tolerance: float) -> None:
    """Rewards, advantages and log-probabilities at every rewarded position; none of padding."""
    like = run.losses.reward
    keys = [key for key in run.expected.reward if key[2] < like.shape[-1]]
    assert len(keys) == like.shape[1] * sum(min(length, like.shape[-1]) for length in LENGTHS)
    index = tuple(torch.tensor(keys).T)
    assert error(run.losses.reward[index], like.new_tensor([run.expected.reward[k] for k in keys])) < tolerance
    assert error(run.losses.advantage[index], like.new_tensor([run.expected.advantage[k] for k in keys])) < tolerance
    log_probs = torch.stack([torch.stack(run.expected.log_probs[key]) for key in keys]).detach()
    assert error(run.losses.log_probs[index], log_probs) < tolerance


def compare_gradients(run: Run, tolerance: float) -> None:
    expected = run.reference.gradients()
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    actual = {name: parameter.grad for name, parameter in run.model.named_parameters()}
    assert actual.keys() == expected.keys()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        # a gradient that cancels to nearly nothing is as exact as its parts
        assert (actual[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-2 * scale), name


@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_parallel_thoughts_equal_thoughts_alone(base):
    compare(run_both(quiet_star(base)), 1e-5)


def test_one_thought_is_compared_with_nothing():
    run = run_both(quiet_star(LLAMA, rationales=1), rationales=1)
    assert run.losses.advantage.count_nonzero() > 0
    compare(run, 1e-5)


def test_one_thought_token_and_one_true_token():
    compare(run_both(quiet_star(LLAMA, thought_tokens=1, lookahead=1)), 1e-5)


def test_double_precision():
    """GPT-2, whose own attention and norms do not round to float32 on the way."""
    compare(run_both(quiet_star(GPT2).double()), 1e-12)


@pytest.mark.parametrize("base", [ARCHITECTURES["qwen2"], GPT2], ids=["qwen2", "gpt2"])
def test_activation_checkpointing_changes_nothing(base):
    model = quiet_star(base).train()
    ids, mask, labels = padded_batch()
    thoughts = random_ids(2, 2, TOKENS, 3, seed=2)
    gradients = []
    for switch in (None, model.activation_checkpointing_enable):
        if switch is not None:
            switch()
        model.zero_grad()
        model(ids, mask, labels=labels, thought_ids=thoughts).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_check_accepts(base):
    check_decoder(build_decoder(config_of(base)))


UNSUPPORTED = {
    "state space": {"model_type": "mamba", "vocab_size": 23, "hidden_size": 16, "num_hidden_layers": 2},
    "alibi": {"model_type": "bloom", "vocab_size": 23, "hidden_size": 16, "n_layer": 2, "n_head": 4},
    "encoder-decoder": {"model_type": "t5", "vocab_size": 23, "d_model": 16, "num_layers": 1, "num_heads": 4},
    "encoder-decoder with a decoder of its own": {
        "model_type": "bart",
        "vocab_size": 23,
        "d_model": 16,
        "decoder_layers": 1,
        "encoder_layers": 1,
        "decoder_attention_heads": 4,
        "decoder_ffn_dim": 16,
    },
    "encoder": {"model_type": "bert", **SIZES, "pad_token_id": 0},
    "attention sinks": {"model_type": "gpt_oss", **SIZES, "num_local_experts": 2, "num_experts_per_tok": 1},
    "scaled logits": {"model_type": "cohere", **SIZES, "pad_token_id": 0},
    "divided logits": {"model_type": "granite", **SIZES, "logits_scaling": 3.0},
    "a table of attention classes": {"model_type": "gptj", **GPT2_SIZES, "rotary_dim": 2},
    "too few learned positions": {**GPT2, "n_positions": 8},
}


@pytest.mark.parametrize("base", UNSUPPORTED.values(), ids=UNSUPPORTED.keys())
def test_unsupported(base):
    with pytest.raises(UnsupportedDecoderError) as caught:
        check_decoder(build_decoder(config_of(base)))
    message = str(caught.value)
    assert message.startswith(f"{base['model_type']}: ")
    assert "\n" not in message
    assert len(message) < 200


def test_from_base_checks_the_decoder():
    base = base_model(UNSUPPORTED["divided logits"])
    with pytest.raises(UnsupportedDecoderError, match="granite"):
        QuietStarForCausalLM.from_base(base, [3])
