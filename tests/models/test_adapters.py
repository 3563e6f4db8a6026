"""Adapters on the base decoder, or none and a frozen one: the engine's gradients, predictions and texts."""

import copy

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from pipeline.models.trained import add_adapters, merge_adapters
from pipeline.thought.model import METHODS, PAUSE, QUIET_STAR, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine
from tests.thought.test_architectures import LENGTHS, TOKENS, padded_batch
from tests.thought.test_engine import ENGINES, compare_engines, given_thoughts, texts, train
from tests.thought.tiny import ARCHITECTURES, GPT2, LLAMA, error, quiet_star, random_ids, slow

RANK, ALPHA = 3, 5.0
EVERY = pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
FAMILIES = pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])


def adapted(base: dict, **settings: object) -> QuietStarForCausalLM:
    """A model whose adapters are not at their start, where they would show nothing."""
    model = quiet_star(base, **settings)
    add_adapters(model.base, RANK, ALPHA)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model


def frozen(base: dict, **settings: object) -> QuietStarForCausalLM:
    model = quiet_star(base, **settings)
    model.base.requires_grad_(False)
    return model


def merged(model: QuietStarForCausalLM) -> QuietStarForCausalLM:
    model = copy.deepcopy(model)
    merge_adapters(model.base)
    return model


def learned(model: QuietStarForCausalLM) -> dict[str, Tensor]:
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


@EVERY
def test_adapters_change_nothing_until_they_are_trained(base):
    plain, model = quiet_star(base).eval(), quiet_star(base).eval()
    add_adapters(model.base, RANK, ALPHA)
    ids = random_ids(2, TOKENS)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert error(adapted(base).eval()(ids).logits, plain(ids).logits) > 0.01


@EVERY
def test_every_matrix_of_the_decoders_layers_has_an_adapter_and_nothing_else_learns(base):
    model = adapted(base)
    matrices = {name for name, value in quiet_star(base).base.base_model.named_parameters() if value.ndim == 2}
    tables = {name for name in matrices if "embed" in name or "wte" in name or "wpe" in name}
    layers = {name.removesuffix(".weight") for name in matrices - tables}
    inner = f"base.{model.base.base_model_prefix}."
    expected = {f"{inner}{layer}.lora_{part}.default.weight" for layer in layers for part in "AB"}
    assert {name for name in learned(model) if name.startswith("base.")} == expected
    assert not any(name.startswith("base.") for name in learned(frozen(base)))
    own = {name for name, _ in model.named_parameters() if not name.startswith("base.")}
    assert own <= learned(model).keys() and own == learned(frozen(base)).keys()


def test_only_layers_that_are_named_have_adapters():
    model = quiet_star(LLAMA)
    add_adapters(model.base, RANK, ALPHA, ["q_proj", "down_proj"])
    assert {name.split(".")[-4] for name in learned(model) if "lora" in name} == {"q_proj", "down_proj"}


@pytest.mark.parametrize("name", ["query", "lm_head", "embed_tokens", "layers"])
def test_a_layer_that_there_is_not(name):
    model = quiet_star(LLAMA)
    with pytest.raises(ValueError, match=f"called {name}: there are down_proj, gate_proj, .*, v_proj"):
        add_adapters(model.base, RANK, ALPHA, ["q_proj", name])
    assert all(parameter.requires_grad for parameter in model.parameters())


@EVERY
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)], ids=str)
def test_merged_adapters_predict_what_they_did_beside_the_base(base, dtype, tolerance):
    model = adapted(base).to(dtype).eval()
    alone, plain, ids = merged(model), quiet_star(base).to(dtype), random_ids(2, TOKENS)
    with torch.no_grad():
        beside, inside = (one(ids, thought_ids=given_thoughts(1)) for one in (model, alone))
    assert error(inside.logits, beside.logits) < tolerance
    assert error(inside.base_logits, beside.base_logits) < tolerance
    assert [(n, type(m)) for n, m in alone.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert alone.state_dict().keys() == plain.state_dict().keys() and not hasattr(alone.base.base_model, "peft_config")


def expected_gradients(model: QuietStarForCausalLM, thoughts: Tensor | None) -> dict[str, Tensor]:
    """Of what learns, from the slow reference on the merged weights W + s B A: dA = s B^T dW and dB = s dW A^T."""
    ids, _, _ = padded_batch()
    rows = [row[:length].tolist() for row, length in zip(ids, LENGTHS, strict=True)]
    alone = merged(model) if any("lora_" in name for name in learned(model)) else model
    reference = slow(alone)
    result = reference.pause_losses(rows, TOKENS) if thoughts is None else reference.losses(rows, TOKENS, thoughts)
    result.total.backward()
    whole, found = reference.gradients(), {}
    for name, value in learned(model).items():
        layer, _, part = name.partition(".lora_")
        if part:
            weight = whole[f"{layer}.weight"]
            change = weight.T if isinstance(alone.get_submodule(layer), Conv1D) else weight
            of = model.get_submodule(layer)
            a, b = of.lora_A["default"].weight, of.lora_B["default"].weight
            found[name] = ALPHA / RANK * (b.T @ change if part.startswith("A") else change @ a.T)
        else:
            found[name] = whole[name]
        assert found[name].shape == value.shape
    return found


def compare_with_reference(model: QuietStarForCausalLM, engine: Engine, tolerance: float) -> None:
    ids, mask, labels = padded_batch()
    sampled = model.config.method == QUIET_STAR
    thoughts = random_ids(len(LENGTHS), 2, TOKENS, model.config.thought_tokens, seed=2) if sampled else None
    expected = expected_gradients(model, thoughts)
    model.zero_grad()
    model(ids, mask, labels=labels, thought_ids=thoughts, engine=engine).loss.backward()
    actual = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert actual.keys() == expected.keys()
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        assert (actual[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-2 * scale), name


@pytest.mark.parametrize("engine", [Engine("reference"), Engine("blocked"), Engine("blocked", 2)], ids=str)
@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("method", [QUIET_STAR, PAUSE])
@pytest.mark.parametrize("kind", [adapted, frozen])
@FAMILIES
def test_gradients_of_thoughts_run_alone(base, kind, method, checkpointing, engine):
    model = kind(base, method=method).train()
    if checkpointing:
        model.activation_checkpointing_enable()
    compare_with_reference(model, engine, 1e-5)


@pytest.mark.parametrize("engine", [Engine("reference"), Engine("blocked", 2)], ids=str)
@pytest.mark.parametrize("kind", [adapted, frozen])
def test_gradients_in_double_precision(kind, engine):
    """GPT-2, whose own attention and norms do not round to float32 on the way."""
    compare_with_reference(kind(GPT2).double(), engine, 1e-12)


@pytest.mark.parametrize("kind", [adapted, frozen])
@EVERY
def test_engines_agree(base, kind):
    compare_engines(kind(base), texts("right"), given_thoughts(), 1e-5)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_the_same_thoughts_are_sampled_beside_the_base_and_merged(engine):
    model = adapted(LLAMA).double()
    one, other = (train(some, engine, texts()).output for some in (model, merged(model)))
    assert torch.equal(one.thoughts.ids, other.thoughts.ids)
    assert error(one.losses.talk_nll, other.losses.talk_nll) < 1e-6


@pytest.mark.parametrize("method", METHODS)
@FAMILIES
def test_the_same_text_is_written_beside_the_base_and_merged(base, method):
    model, prompt = adapted(base, method=method).double().eval(), random_ids(2, 5)
    written = model.generate(prompt, max_new_tokens=6)
    assert torch.equal(written, merged(model).generate(prompt, max_new_tokens=6))
    assert not torch.equal(written, quiet_star(base, method=method).double().eval().generate(prompt, max_new_tokens=6))
    assert torch.equal(prompt, written[:, :5]) and written.shape == (2, 11)


def test_thoughts_are_sampled_from_the_adapted_model():
    ids = random_ids(2, TOKENS)
    plain, model = quiet_star(LLAMA).eval(), adapted(LLAMA).eval()
    with torch.no_grad():
        one, other = (some(ids, sampling=Sampling(seed=3)).thoughts.ids for some in (plain, model))
    assert not torch.equal(one, other)
