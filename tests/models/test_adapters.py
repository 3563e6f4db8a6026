"""The engine on a base model with adapters, or on a frozen one: gradients, predictions and texts."""

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from pipeline.models.trained import add_adapters, merge_adapters
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.step import Engine
from tests.thought.test_engine import compare_engines, train
from tests.thought.tiny import (
    ARCHITECTURES,
    GPT2,
    LENGTHS,
    LLAMA,
    TOKENS,
    compare_gradients,
    error,
    given_thoughts,
    gradients,
    quiet_star,
    random_ids,
    slow,
    texts,
    unpadded,
)

RANK, ALPHA = 3, 5.0
EVERY = pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())


def adapted(base: dict, **settings: object) -> QuietStarForCausalLM:
    """Make a model whose adapters are not zero, as they are before training, where they would show nothing."""
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
def test_adapters_are_on_every_matrix_of_the_layers_and_change_nothing_until_they_are_trained(base: dict):
    plain, model, other, ids = quiet_star(base).eval(), quiet_star(base).eval(), frozen(base), random_ids(2, TOKENS)
    add_adapters(model.base, RANK, ALPHA)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, plain(ids).logits)
        assert error(adapted(base).eval()(ids).logits, plain(ids).logits) > 0.01
    matrices = {name for name, value in plain.base.base_model.named_parameters() if value.ndim == 2}
    layers = {n.removesuffix(".weight") for n in matrices if "embed" not in n and "wte" not in n and "wpe" not in n}
    inner = f"base.{model.base.base_model_prefix}."
    own = {name for name, _ in plain.named_parameters() if not name.startswith("base.")}
    assert learned(model).keys() == own | {f"{inner}{name}.lora_{p}.default.weight" for name in layers for p in "AB"}
    assert learned(other).keys() == own


def test_only_named_layers_have_adapters_and_unknown_names_are_refused():
    for name in ("query", "lm_head", "embed_tokens", "layers"):
        model = quiet_star(LLAMA)
        with pytest.raises(ValueError, match=f"called {name}: there are down_proj, gate_proj, .*, v_proj"):
            add_adapters(model.base, RANK, ALPHA, ["q_proj", name])
        assert all(parameter.requires_grad for parameter in model.parameters())
    add_adapters(model.base, RANK, ALPHA, ["q_proj", "down_proj"])
    assert {name.split(".")[-4] for name in learned(model) if "lora" in name} == {"q_proj", "down_proj"}


@EVERY
def test_merged_adapters_predict_what_they_did_beside_the_base(base: dict):
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.float64, 1e-12)):
        model = adapted(base).to(dtype).eval()
        alone, plain, ids = merged(model), quiet_star(base).to(dtype), random_ids(2, TOKENS)
        with torch.no_grad():
            beside, inside = (one(ids, thought_ids=given_thoughts(1)) for one in (model, alone))
        assert error(inside.logits, beside.logits) < tolerance
        assert error(inside.base_logits, beside.base_logits) < tolerance
        assert [(n, type(m)) for n, m in alone.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
        assert alone.state_dict().keys() == plain.state_dict().keys()
        assert not hasattr(alone.base.base_model, "peft_config")


def expected_gradients(model: QuietStarForCausalLM, thoughts: Tensor | None) -> dict[str, Tensor]:
    """Return the slow reference's gradients of what learns.

    With adapters, the reference runs on the merged weights W + s B A: dA = s B^T dW and dB = s dW A^T.
    """
    ids, mask, _ = texts("right")
    alone = merged(model) if any("lora_" in name for name in learned(model)) else model
    reference = slow(alone)
    result = reference.losses(unpadded(ids, mask), TOKENS, thoughts)
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


@pytest.mark.parametrize(
    ("base", "kind", "method", "checkpointing", "engine", "tolerance"),
    [
        (LLAMA, adapted, QUIET_STAR, True, Engine("blocked", 2), 1e-5),
        (LLAMA, frozen, PAUSE, False, Engine("blocked", 2), 1e-5),
        (LLAMA, adapted, PAUSE, False, Engine("reference"), 1e-5),
        (GPT2, frozen, QUIET_STAR, True, Engine("blocked"), 1e-5),
        (GPT2, adapted, PAUSE, True, Engine("blocked"), 1e-5),
        (GPT2, frozen, QUIET_STAR, False, Engine("reference"), 1e-5),
        # double precision: GPT-2's attention and norms do not round to float32
        (GPT2, adapted, QUIET_STAR, False, Engine("blocked", 2), 1e-12),
        (GPT2, frozen, QUIET_STAR, False, Engine("reference"), 1e-12),
    ],
)
def test_gradients_are_those_of_thoughts_run_alone(
    base: dict, kind: Callable, method: str, checkpointing: bool, engine: Engine, tolerance: float
):
    model = kind(base, method=method).train()
    if tolerance < 1e-5:
        model.double()
    if checkpointing:
        model.activation_checkpointing_enable()
    ids, mask, labels = texts("right")
    sampled = method == QUIET_STAR
    thoughts = random_ids(len(LENGTHS), 2, TOKENS, model.config.thought_tokens, seed=2) if sampled else None
    expected = expected_gradients(model, thoughts)
    assert all(gradient.norm() > 0 for gradient in expected.values())
    actual = gradients(model, model(ids, mask, labels=labels, thought_ids=thoughts, engine=engine).loss)
    compare_gradients({name: value for name, value in actual.items() if value is not None}, expected, tolerance)


@pytest.mark.slow
@EVERY
def test_engines_agree(base: dict):
    for kind in (adapted, frozen):
        compare_engines(kind(base), texts("right"), given_thoughts(), 1e-5)


@pytest.mark.parametrize("engine", [Engine("reference"), Engine("blocked", 3)], ids=str)
def test_the_same_thoughts_are_sampled_beside_the_base_and_merged(engine: Engine):
    """They are the adapted model's thoughts, not the base model's."""
    model = adapted(LLAMA).double()
    one, other = (train(some, engine, texts()).output for some in (model, merged(model)))
    assert torch.equal(one.thoughts.ids, other.thoughts.ids)
    assert error(one.losses.talk_nll, other.losses.talk_nll) < 1e-6
    assert not torch.equal(one.thoughts.ids, train(quiet_star(LLAMA).double(), engine, texts()).output.thoughts.ids)


@pytest.mark.parametrize(("base", "method"), [(LLAMA, QUIET_STAR), (GPT2, PAUSE), (LLAMA, NO_THOUGHT)])
def test_the_same_text_is_written_beside_the_base_and_merged(base: dict, method: str):
    model, prompt = adapted(base, method=method).double().eval(), random_ids(2, 5)
    written = model.generate(prompt, max_new_tokens=6)
    assert torch.equal(written, merged(model).generate(prompt, max_new_tokens=6))
    assert not torch.equal(written, quiet_star(base, method=method).double().eval().generate(prompt, max_new_tokens=6))
    assert torch.equal(prompt, written[:, :5]) and written.shape == (2, 11)
