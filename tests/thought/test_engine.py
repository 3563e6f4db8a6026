"""Whole training steps: however the engine computes one, losses, thoughts and gradients are the same."""

from dataclasses import dataclass, fields
from functools import partial

import pytest
import torch
from torch import Tensor

from pipeline.bench.measure import recompute_activations
from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import IGNORED, Losses, counts_of
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine
from tests.thought.tiny import (
    ARCHITECTURES,
    ENDING,
    GEMMA2,
    GPT2,
    LLAMA,
    TOKENS,
    Texts,
    compare_gradients,
    error,
    given_thoughts,
    gradients,
    peak,
    quiet_star,
    random_ids,
    texts,
)

SAMPLING = Sampling(1.0, seed=5)
PLAIN = Engine("reference", None)
ENGINES = [Engine(a, p) for a in ("blocked", "reference") for p in (None, 1, 3, 100) if Engine(a, p) != PLAIN]
SLICED = Engine("blocked", 3)
LOSSES = [field.name for field in fields(Losses) if field.name != "parts"]  # those that are tensors
UNTIED = {"tie_word_embeddings": False}


@dataclass(frozen=True)
class Step:
    """What a training step gives; ``gradients`` are None where the loss does not reach."""

    output: QuietStarOutput
    gradients: dict[str, Tensor | None]

    @property
    def losses(self) -> Losses:
        return self.output.losses


def run(model: QuietStarForCausalLM, engine: Engine, batch: Texts, thoughts: Tensor | None = None) -> QuietStarOutput:
    return model(batch.ids, batch.mask, labels=batch.labels, thought_ids=thoughts, sampling=SAMPLING, engine=engine)


def train(model: QuietStarForCausalLM, engine: Engine, batch: Texts, thoughts: Tensor | None = None) -> Step:
    output = run(model, engine, batch, thoughts)
    return Step(output, gradients(model, output.loss))


def compare(actual: Step, expected: Step, tolerance: float) -> None:
    compare_outputs(actual.output, expected.output, tolerance)
    compare_gradients(actual.gradients, expected.gradients, tolerance)


def compare_outputs(actual: QuietStarOutput, expected: QuietStarOutput, tolerance: float) -> None:
    for name in LOSSES:
        found, wanted = getattr(actual.losses, name), getattr(expected.losses, name)
        assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape), name
        assert (found.double() - wanted.double()).norm() <= tolerance * wanted.double().norm(), name
    assert (actual.thoughts is None) == (expected.thoughts is None)
    if actual.thoughts is not None:
        assert torch.equal(actual.thoughts.ids, expected.thoughts.ids)
        assert torch.equal(actual.thoughts.lengths, expected.thoughts.lengths)
        found, wanted = actual.thoughts.entropy, expected.thoughts.entropy
        assert (found - wanted).norm() <= tolerance * wanted.norm()


def compare_engines(model: QuietStarForCausalLM, batch: Texts, thoughts: Tensor | None, tolerance: float) -> None:
    expected = train(model, PLAIN, batch, thoughts)
    for engine in ENGINES:
        compare(train(model, engine, batch, thoughts), expected, tolerance)


@pytest.mark.parametrize(("name", "thoughts"), [("gpt2", None), ("gpt_neox", given_thoughts())])
def test_engines_agree_in_double_precision(name, thoughts):
    """Of models whose norms transformers does not compute in float32."""
    compare_engines(quiet_star(ARCHITECTURES[name]).double(), texts("right"), thoughts, 1e-12)


CASES = {  # a base, settings, padding
    "llama, padded on the left": (LLAMA, {}, "left"),
    "gemma2, padded on the right": (GEMMA2, {}, "right"),
    "gpt2, padded on the left": (GPT2, {}, "left"),
    "mistral, window": (ARCHITECTURES["mistral, window"], {}, "right"),
    "llama, untied": (LLAMA | UNTIED, {}, None),
    "gemma2, untied": (GEMMA2 | UNTIED, {}, None),
    "one thought": (LLAMA, {"rationales": 1}, None),
    "three thoughts": (LLAMA, {"rationales": 3}, None),
    "three thoughts that end, padded on the left": (LLAMA, {"rationales": 3} | ENDING, "left"),
    "one thought token, one true token": (LLAMA, {"thought_tokens": 1, "lookahead": 1}, None),
    "four thought tokens": (GPT2, {"thought_tokens": 4, "lookahead": 1}, None),
    "eight true tokens": (LLAMA, {"thought_tokens": 2, "lookahead": 8}, None),
}


@pytest.mark.parametrize(("base", "settings", "padding"), CASES.values(), ids=CASES.keys())
def test_engines_agree(base, settings, padding):
    compare_engines(quiet_star(base, **settings), texts(padding), None, 1e-5)


@pytest.mark.parametrize("engine", [Engine("reference"), Engine("reference", 5), Engine("blocked"), SLICED], ids=str)
@pytest.mark.parametrize("settings", [{}, ENDING, {"method": "pause"}], ids=["K tokens", "ending", "pause"])
def test_texts_of_every_length_are_what_each_is_alone(engine, settings):
    """Of 40 tokens, some blocks of positions, down to one; draws, losses and gradients add up to the batch's."""
    model, ids, lengths = quiet_star(LLAMA, **settings), random_ids(5, 40), torch.tensor([3, 40, 1, 17, 2])
    mask = (torch.arange(40) < lengths[:, None]).long()
    labels, keys = ids.masked_fill(mask == 0, IGNORED), torch.arange(5)
    options = {"sampling": SAMPLING, "engine": engine, "counts": counts_of(labels, model.lookahead)}
    batch, parts = model(ids, mask, labels=labels, text_keys=keys, **options), []
    found = gradients(model, batch.loss)
    model.zero_grad()
    for b in range(5):
        one = slice(b, b + 1)
        parts.append(model(ids[one], mask[one], labels=labels[one], text_keys=keys[one], **options))
        if parts[-1].loss.requires_grad:
            parts[-1].loss.backward()
    rewarded = batch.losses.advantage.abs().unsqueeze(-1) > 1e-5  # else rounding may decide on log-probabilities
    for name in LOSSES:
        values = [getattr(part.losses, name) for part in parts]
        together, alone = getattr(batch.losses, name), torch.cat(values) if values[0].ndim else sum(values)
        if name == "log_probs":
            together, alone = together * rewarded, alone * rewarded
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    if batch.thoughts is not None:
        thinks = batch.losses.thinks.unsqueeze(1)
        assert torch.equal(batch.thoughts.ids, torch.cat([part.thoughts.ids for part in parts]))
        assert not batch.thoughts.ids[~thinks.expand(-1, 2, -1)].any() and thinks.sum() == 2 + 39 + 16 + 1
    compare_gradients(found, {name: p.grad for name, p in model.named_parameters()}, 1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 4, 5])
def test_engines_agree_on_texts_with_few_rewards_or_none(tokens):
    model, batch = quiet_star(LLAMA, lookahead=3), texts(tokens=tokens)
    expected = run(model, PLAIN, batch)
    assert expected.losses.reward.shape == (2, 2, max(0, tokens - 4))
    assert expected.loss.isfinite()
    if tokens > 1:
        compare_engines(model, batch, None, 1e-5)
    else:
        for engine in ENGINES:
            compare_outputs(run(model, engine, batch), expected, 1e-5)


def test_engines_agree_where_no_label_counts():
    batch = texts()._replace(labels=torch.full((2, TOKENS), IGNORED))
    for engine in (PLAIN, *ENGINES):
        step = train(quiet_star(LLAMA), engine, batch)
        assert step.losses.total == 0
        assert all(g is None or not g.any() for g in step.gradients.values())


def test_the_default_engine_is_auto_and_whole():
    model, batch = quiet_star(LLAMA), texts()
    default = model(batch.ids, labels=batch.labels, sampling=SAMPLING).loss
    assert torch.equal(default, run(model, Engine("auto", None), batch).loss)
    assert torch.equal(default, run(model, Engine("blocked"), batch).loss)


@pytest.mark.filterwarnings("ignore:flex_attention called without")
@pytest.mark.parametrize("settings", [{}, ENDING], ids=["K tokens", "ending"])
def test_flex_as_written_evaluates_as_the_reference(settings):
    torch._dynamo.reset()
    model, batch = quiet_star({**LLAMA, "head_dim": 16}, **settings).eval(), texts("right")
    with torch.no_grad():
        expected = run(model, PLAIN, batch)
        for engine in (Engine("flex"), Engine("flex", 4)):
            compare_outputs(run(model, engine, batch), expected, 1e-5)


@pytest.mark.parametrize(
    ("base", "engine", "settings"),
    [(LLAMA, PLAIN, {}), (GEMMA2, SLICED, {}), (GPT2, Engine("blocked", 2), {}), (LLAMA, SLICED, ENDING)],
)
def test_sampled_thoughts_teach_what_the_same_thoughts_given_do(base, engine, settings):
    """Rows without an advantage are left out where thoughts were sampled; they would have added nothing."""
    model, batch = quiet_star(base, **settings), texts()
    sampled = train(model, engine, batch)
    given = train(model, engine, batch, sampled.output.thoughts.ids)
    compare_gradients(sampled.gradients, given.gradients, 1e-6)
    for name in LOSSES:
        if name != "log_probs":
            assert torch.equal(getattr(sampled.losses, name), getattr(given.losses, name)), name
    counted = sampled.losses.advantage > 0
    assert counted.any() and not counted.all()
    assert error(sampled.losses.log_probs[counted], given.losses.log_probs[counted]) < 1e-6
    assert not sampled.losses.log_probs[~counted].any()
    lengths = sampled.output.thoughts.lengths[:, :, : counted.shape[2], None]
    assert lengths.unique().numel() == (4 if settings else 1)
    assert torch.equal(given.losses.log_probs != 0, torch.arange(3) <= lengths)


@pytest.mark.parametrize("base", [LLAMA, LLAMA | UNTIED], ids=["tied", "untied"])
@pytest.mark.parametrize("engine", [Engine("blocked"), SLICED, Engine("reference", 3)], ids=str)
def test_gradients_of_several_losses_accumulate(base, engine):
    model, batches = quiet_star(base), [texts(seed=1), texts("left", seed=3)]
    parts = [train(model, PLAIN, batch).gradients for batch in batches]
    expected = {name: sum(part[name] for part in parts) / 2 for name in parts[0]}
    model.zero_grad()
    for batch in batches:
        (run(model, engine, batch).loss / 2).backward()
    compare_gradients({name: p.grad for name, p in model.named_parameters()}, expected, 1e-5)
    total = sum(run(model, engine, batch).loss for batch in batches) / 2
    compare_gradients(gradients(model, total), expected, 1e-5)


@pytest.mark.parametrize(
    ("name", "engine"),
    [("qwen2", PLAIN), ("gemma2", SLICED), ("gpt2", Engine("blocked")), ("gpt2", Engine("reference", 3))],
)
def test_activation_checkpointing_changes_nothing(name, engine):
    model, batch, calls = quiet_star(ARCHITECTURES[name]).train(), texts("right"), []
    inner = model.base.base_model
    last_mlp = (inner.h if hasattr(inner, "h") else inner.layers)[-1].mlp
    last_mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    expected = train(model, engine, batch, given_thoughts())
    plain_calls = len(calls)
    recompute_activations(model)
    compare(train(model, engine, batch, given_thoughts()), expected, 1e-5)
    assert len(calls) == 3 * plain_calls


@pytest.mark.parametrize("attention", ["reference", "blocked"])
def test_a_slice_of_positions_is_held_at_a_time(attention):
    model, batch = quiet_star(LLAMA), texts(tokens=24)
    most = {}
    for positions in (24, 12, 2):
        most[positions] = peak(partial(train, model, Engine(attention, positions), batch))
    assert most[12] < 0.7 * most[24]
    assert most[2] < 0.2 * most[24]


def compare_autocast(model: QuietStarForCausalLM, engine: Engine, batch: Texts, thoughts: Tensor) -> None:
    """A step under bfloat16 autocast is close to the plain one, its gradients are float32, and it is not the same."""
    exact = train(model, PLAIN, batch, thoughts)
    with torch.autocast(model.device.type, torch.bfloat16):
        output = run(model, engine, batch, thoughts)
    found = gradients(model, output.loss)
    assert output.loss.dtype == torch.float32
    assert 0 < error(output.losses.base_nll, exact.losses.base_nll) < 0.03
    assert 0 < error(output.losses.talk_nll, exact.losses.talk_nll) < 0.1
    for name, gradient in found.items():
        assert gradient.dtype == torch.float32, name
        assert 0 < error(gradient, exact.gradients[name]) < 0.3, name


@pytest.mark.parametrize(
    ("base", "engine"), [(LLAMA, PLAIN), (GEMMA2, Engine("blocked")), (GPT2, SLICED), (LLAMA, Engine("reference", 3))]
)
def test_autocast_is_close_to_float32(base, engine):
    compare_autocast(quiet_star(base).train(), engine, texts(), given_thoughts())


@pytest.mark.parametrize("base", [LLAMA, GEMMA2], ids=["llama", "capped logits"])
@pytest.mark.parametrize("weight", [1e-3, 1e-2, 1e-1])
def test_advantages_survive_bfloat16(weight: float, base: dict):
    """However small the mixing weight: mixed *states* would be rounded to within one part in 256 of the text's."""
    model = quiet_star(base, rationales=4, advantage="signed")
    model.mixing_head.start_at(weight)
    model.mixing_head[0].weight.data.zero_()
    batch, thoughts = texts(tokens=24), given_thoughts(rationales=4, tokens=24)
    exact = run(model, PLAIN, batch, thoughts).losses
    with torch.autocast("cpu", torch.bfloat16):
        found = run(model, PLAIN, batch, thoughts).losses
    both = torch.stack([exact.advantage, found.advantage]).flatten(1)
    assert torch.corrcoef(both)[0, 1] > 0.99
    off = (found.reward - exact.reward).abs()
    assert (off <= 4 * found.rounding + 0.02 * exact.reward.abs()).float().mean() > 0.95
    assert (found.reward.abs() <= found.rounding).float().mean() < 0.5


def test_at_a_mixing_weight_of_0_every_reward_is_0():
    """In bfloat16 too, to the last bit, and rounding says that none can be told from 0."""
    model = quiet_star(LLAMA)
    model.mixing_head.start_at(0.0)
    for enabled in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            losses = run(model, PLAIN, texts("right")).losses
        assert not losses.reward.any() and not losses.advantage.any() and losses.rounding.any()
        assert torch.equal(losses.talk_nll, losses.without_nll.expand_as(losses.talk_nll)) and losses.talk_nll.any()


TRAINED = {
    "mixing head and meta-tokens": ("mixing_head", "start_embedding", "end_embedding"),
    "mixing head": ("mixing_head",),
    "a meta-token": ("end_embedding",),
    "all but the embeddings": ("mixing_head", "start_embedding", "end_embedding", "base.model.layers"),
    "LM head": ("base.lm_head",),
}


@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED.keys())
def test_frozen_parameters_change_no_other_gradient(trained):
    model, batch = quiet_star(LLAMA | UNTIED), texts()
    full = train(model, PLAIN, batch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    expected = {name: g if name.startswith(trained) else None for name, g in full.gradients.items()}
    for engine in (PLAIN, SLICED, Engine("blocked"), Engine("reference", 1)):
        found = train(model, engine, batch)
        compare_outputs(found.output, full.output, 1e-5)
        compare_gradients(found.gradients, expected, 1e-5)


@pytest.mark.parametrize("engine", [PLAIN, *ENGINES], ids=str)
def test_evaluation_without_gradients_is_the_same_and_reports_hold_no_graph(engine):
    model, batch = quiet_star(LLAMA), texts("right")
    expected = run(model, engine, batch)
    assert [name for name in LOSSES if getattr(expected.losses, name).requires_grad] == ["total"]
    assert not expected.weight.requires_grad and not expected.thoughts.entropy.requires_grad
    with torch.no_grad():
        output = run(model, engine, batch)
    assert not output.loss.requires_grad
    compare_outputs(output, expected, 1e-5)


def test_values_of_another_width_than_keys_take_the_reference():
    """Multi-head latent attention (DeepSeek V3), which flash attention refuses."""
    heads = {"q_lora_rank": None, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 6}
    sizes = {name: size for name, size in LLAMA.items() if name != "head_dim"} | {"num_key_value_heads": 4}
    model = quiet_star(sizes | heads | {"model_type": "deepseek_v3", "first_k_dense_replace": 2})
    ids = random_ids(2, 9)
    losses = [
        model(ids, labels=ids, sampling=Sampling(1.0, 7), engine=Engine(attention=path)).loss
        for path in ("auto", "reference")
    ]
    torch.testing.assert_close(*losses)
