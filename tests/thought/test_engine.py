"""Whole training steps: however the engine computes one, losses, thoughts and gradients are the same."""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, fields

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import IGNORED, Losses
from pipeline.thought.sampler import Sampling
from pipeline.thought.slices import slices_of, sum_over
from pipeline.thought.step import Engine
from tests.thought.tiny import ARCHITECTURES, GEMMA2, GPT2, LLAMA, error, quiet_star, random_ids

TOKENS = 9
SAMPLING = Sampling(1.0, seed=5)
PLAIN = Engine("reference", None)
ENGINES = [Engine(a, p) for a in ("blocked", "reference") for p in (None, 1, 3, 100) if Engine(a, p) != PLAIN]
WHOLE_OR_SLICED = pytest.mark.parametrize("positions", [None, 3])
FAMILIES = pytest.mark.parametrize("base", [LLAMA, GEMMA2, GPT2], ids=["llama", "gemma2", "gpt2"])


@dataclass(frozen=True)
class Texts:
    """``mask``: None where nothing is padded."""

    ids: Tensor
    mask: Tensor | None
    labels: Tensor


def texts(padding: str | None = None, tokens: int = TOKENS, seed: int = 1) -> Texts:
    """Two texts, the second two tokens shorter where there is padding, on the left or right."""
    ids = random_ids(2, tokens, seed=seed)
    if padding is None:
        return Texts(ids, None, ids)
    mask = torch.ones_like(ids)
    mask[1, slice(0, 2) if padding == "left" else slice(-2, None)] = 0
    return Texts(ids, mask, ids.masked_fill(mask == 0, IGNORED))


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
    model.zero_grad()
    output = run(model, engine, batch, thoughts)
    output.loss.backward()
    return Step(output, {name: p.grad for name, p in model.named_parameters()})


def compare(actual: Step, expected: Step, tolerance: float) -> None:
    compare_outputs(actual.output, expected.output, tolerance)
    compare_gradients(actual.gradients, expected.gradients, tolerance)


def compare_outputs(actual: QuietStarOutput, expected: QuietStarOutput, tolerance: float) -> None:
    for field in fields(Losses):
        found, wanted = getattr(actual.losses, field.name), getattr(expected.losses, field.name)
        assert found.dtype == wanted.dtype, field.name
        assert found.shape == wanted.shape, field.name
        assert (found - wanted).norm() <= tolerance * wanted.norm(), field.name
    assert error(actual.weight, expected.weight) <= tolerance
    assert (actual.thoughts is None) == (expected.thoughts is None)
    if actual.thoughts is not None:
        assert torch.equal(actual.thoughts.ids, expected.thoughts.ids)
        assert error(actual.thoughts.entropy, expected.thoughts.entropy) <= tolerance


def compare_gradients(actual: dict[str, Tensor | None], expected: dict[str, Tensor | None], tolerance: float) -> None:
    scale = torch.stack([g.norm() for g in expected.values() if g is not None]).norm()
    assert scale > 0
    for name, gradient in expected.items():
        assert (actual[name] is None) == (gradient is None), name
        if gradient is not None:
            # a gradient that cancels to nearly nothing is as exact as its parts
            assert (actual[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-2 * scale), name


def given_thoughts(rationales: int = 2, tokens: int = TOKENS) -> Tensor:
    return random_ids(2, rationales, tokens, 3, seed=2)


def compare_engines(model: QuietStarForCausalLM, batch: Texts, thoughts: Tensor | None, tolerance: float) -> None:
    expected = train(model, PLAIN, batch, thoughts)
    for engine in ENGINES:
        compare(train(model, engine, batch, thoughts), expected, tolerance)


@pytest.fixture
def exact_norms(monkeypatch: pytest.MonkeyPatch) -> Callable[[QuietStarForCausalLM], None]:
    """Has a float64 model's RMS norms, which transformers computes in float32, computed in float64."""

    def exact(norm: torch.nn.Module, hidden: Tensor) -> Tensor:
        return F.rms_norm(hidden, norm.weight.shape, norm.weight, norm.variance_epsilon)

    def patch(model: QuietStarForCausalLM) -> None:
        for kind in {type(m) for m in model.modules() if type(m).__name__.endswith("RMSNorm")}:
            monkeypatch.setattr(kind, "forward", exact)

    return patch


@pytest.mark.parametrize("sampled", [False, True], ids=["given", "sampled"])
@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt2", "gpt_neox"])
def test_engines_agree_in_double_precision(name, sampled, exact_norms):
    model = quiet_star(ARCHITECTURES[name]).double()
    exact_norms(model)
    compare_engines(model, texts("right"), None if sampled else given_thoughts(), 1e-12)


@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_engines_agree_on_every_architecture(base):
    compare_engines(quiet_star(base), texts(), given_thoughts(), 1e-5)


@FAMILIES
@pytest.mark.parametrize("padding", ["left", "right"])
def test_engines_agree_on_padded_texts(base, padding):
    compare_engines(quiet_star(base), texts(padding), given_thoughts(), 1e-5)


@FAMILIES
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_engines_agree_on_tied_and_untied_embeddings(base, tied):
    model = quiet_star({**base, "tie_word_embeddings": tied})
    assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied
    compare_engines(model, texts(), None, 1e-5)


@pytest.mark.parametrize("rationales", [1, 3])
def test_engines_agree_on_any_number_of_thoughts(rationales):
    compare_engines(quiet_star(LLAMA, rationales=rationales), texts(), None, 1e-5)


@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (4, 1), (2, 8)], ids=str)
def test_engines_agree_on_any_size_of_a_thought(sizes):
    thought_tokens, lookahead = sizes
    model = quiet_star(LLAMA, thought_tokens=thought_tokens, lookahead=lookahead)
    compare_engines(model, texts(), None, 1e-5)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5])
def test_engines_agree_on_texts_with_few_rewards_or_none(tokens):
    model = quiet_star(LLAMA, lookahead=3)
    expected = run(model, PLAIN, texts(tokens=tokens))
    assert expected.losses.reward.shape == (2, 2, max(0, tokens - 4))
    assert expected.loss.isfinite()
    for engine in ENGINES:
        compare_outputs(run(model, engine, texts(tokens=tokens)), expected, 1e-5)
    if tokens > 1:
        compare_engines(model, texts(tokens=tokens), None, 1e-5)


def test_engines_agree_where_no_label_counts():
    batch = texts()
    batch = Texts(batch.ids, None, torch.full_like(batch.ids, IGNORED))
    for engine in (PLAIN, *ENGINES):
        step = train(quiet_star(LLAMA), engine, batch)
        assert step.losses.total == 0
        assert all(g is None or not g.any() for g in step.gradients.values())


def test_the_default_engine_is_auto_and_whole():
    model, batch = quiet_star(LLAMA), texts()
    default = model(batch.ids, labels=batch.labels, sampling=SAMPLING).loss
    assert torch.equal(default, run(model, Engine("auto", None), batch).loss)
    assert torch.equal(default, run(model, Engine("blocked"), batch).loss)


def test_an_unknown_way_of_attention_is_refused():
    with pytest.raises(ValueError, match="attention is 'fast', but must be one of"):
        run(quiet_star(LLAMA), Engine("fast"), texts())


@pytest.mark.filterwarnings("ignore:flex_attention called without")
def test_flex_as_written_evaluates_as_the_reference():
    torch._dynamo.reset()
    model, batch = quiet_star({**LLAMA, "head_dim": 16}).eval(), texts("right")
    with torch.no_grad():
        expected = run(model, PLAIN, batch)
        for engine in (Engine("flex"), Engine("flex", 4)):
            compare_outputs(run(model, engine, batch), expected, 1e-5)


@FAMILIES
def test_a_text_in_slices_thinks_what_it_thinks_alone(base):
    model = quiet_star(base).eval()
    ids = random_ids(3, TOKENS)
    with torch.no_grad():
        together = model(ids, labels=ids, sampling=SAMPLING, text_keys=torch.tensor([4, 7, 9]), engine=PLAIN)
        for engine in ENGINES:
            alone = model(ids[1:2], labels=ids[1:2], sampling=SAMPLING, text_keys=torch.tensor([7]), engine=engine)
            assert torch.equal(alone.thoughts.ids, together.thoughts.ids[1:2])
            assert error(alone.losses.talk_nll, together.losses.talk_nll[1:2]) < 1e-5


@pytest.mark.parametrize("engine", [PLAIN, Engine("blocked", 2)], ids=str)
@FAMILIES
def test_sampled_thoughts_teach_what_the_same_thoughts_given_do(base, engine):
    """Rows without an advantage are left out where thoughts were sampled; they would have added nothing."""
    model, batch = quiet_star(base), texts()
    sampled = train(model, engine, batch)
    given = train(model, engine, batch, sampled.output.thoughts.ids)
    compare_gradients(sampled.gradients, given.gradients, 1e-6)
    for field in fields(Losses):
        if field.name != "log_probs":
            assert torch.equal(getattr(sampled.losses, field.name), getattr(given.losses, field.name)), field.name
    counted = sampled.losses.advantage > 0
    assert counted.any()
    assert not counted.all()
    assert error(sampled.losses.log_probs[counted], given.losses.log_probs[counted]) < 1e-6
    assert not sampled.losses.log_probs[~counted].any()
    assert given.losses.log_probs[~counted].all()


@pytest.mark.parametrize("base", [LLAMA, {**LLAMA, "tie_word_embeddings": False}], ids=["tied", "untied"])
@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_gradients_of_several_losses_accumulate(base, engine):
    model, batches = quiet_star(base), [texts(seed=1), texts("left", seed=3)]
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for batch in batches:
        for name, gradient in train(model, PLAIN, batch).gradients.items():
            expected[name] += gradient / 2
    model.zero_grad()
    for batch in batches:
        (run(model, engine, batch).loss / 2).backward()
    one_by_one = {name: p.grad.clone() for name, p in model.named_parameters()}
    compare_gradients(one_by_one, expected, 1e-5)
    model.zero_grad()
    (sum(run(model, engine, batch).loss for batch in batches) / 2).backward()
    compare_gradients({name: p.grad for name, p in model.named_parameters()}, expected, 1e-5)


@WHOLE_OR_SLICED
def test_a_loss_has_one_backward_pass(positions):
    loss = run(quiet_star(LLAMA), Engine(positions=positions), texts()).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="a Quiet-STaR loss has one backward pass"):
        loss.backward()


@pytest.mark.parametrize("engine", [PLAIN, *ENGINES], ids=str)
@pytest.mark.parametrize("name", ["qwen2", "gemma2", "gpt2"])
def test_activation_checkpointing_changes_nothing(name, engine):
    model, batch = quiet_star(ARCHITECTURES[name]).train(), texts("right")
    expected = train(model, PLAIN, batch, given_thoughts())
    calls = []
    last_mlp(model).register_forward_pre_hook(lambda *_: calls.append(1))
    train(model, engine, batch, given_thoughts())
    plain_calls = len(calls)
    calls.clear()
    model.activation_checkpointing_enable()
    checkpointed = train(model, engine, batch, given_thoughts())
    assert len(calls) == 2 * plain_calls
    compare(checkpointed, expected, 1e-5)


def last_mlp(model: QuietStarForCausalLM) -> torch.nn.Module:
    inner = model.base.base_model
    return (inner.h if hasattr(inner, "h") else inner.layers)[-1].mlp


@pytest.mark.parametrize("size", [1, 2, 3, 7, 9])
def test_a_sum_over_slices_has_the_gradients_of_the_whole(size):
    """Also where autograd hands out one tensor as the gradient of two, and for what is unused or frozen."""
    generator = torch.Generator().manual_seed(0)
    rows, one, two, frozen, weight, unused = torch.randn(6, 1, 2, 7, 3, generator=generator, dtype=torch.float64)
    shared, learned = [one, two, frozen], [rows, one, two, weight, unused]
    for tensor in learned:
        tensor.requires_grad_()

    def part_of_loss(part: slice, own: Tensor, shared: list[Tensor]) -> tuple[Tensor, Tensor]:
        one, two, frozen = shared
        loss = (own.tanh() * (one + two + frozen)[:, :, part] * weight[:, :, part]).sum()
        return loss, loss.detach()

    whole, _ = part_of_loss(slice(0, 7), rows, shared)
    expected = torch.autograd.grad(3 * whole, learned, allow_unused=True)
    total, reports = sum_over(slices_of(7, size), part_of_loss, rows, shared, [weight, unused])
    found = torch.autograd.grad(3 * total, learned, allow_unused=True)
    assert len(reports) == math.ceil(7 / size)
    torch.testing.assert_close(total, whole)
    torch.testing.assert_close(sum(reports), whole.detach())
    assert found[-1] is expected[-1] is None
    for actual, wanted in zip(found[:-1], expected[:-1], strict=True):
        torch.testing.assert_close(actual, wanted)


class Peak:
    """The most elements that waited for a backward pass at once."""

    def __init__(self) -> None:
        self.most = self._now = 0

    def pack(self, tensor: Tensor) -> "Peak.Held":
        return Peak.Held(self, tensor)

    def add(self, elements: int) -> None:
        self._now += elements
        self.most = max(self.most, self._now)

    class Held:
        def __init__(self, peak: "Peak", tensor: Tensor):
            self.tensor = tensor
            peak.add(tensor.numel())
            weakref.finalize(self, peak.add, -tensor.numel())


@pytest.mark.parametrize("attention", ["reference", "blocked"])
def test_a_slice_of_positions_is_held_at_a_time(attention):
    model, batch = quiet_star(LLAMA), texts(tokens=24)
    most = {}
    for positions in (24, 12, 2):
        peak = Peak()
        with saved_tensors_hooks(peak.pack, lambda held: held.tensor):
            run(model, Engine(attention, positions), batch).loss.backward()
        most[positions] = peak.most
    assert most[12] < 0.7 * most[24]
    assert most[2] < 0.2 * most[24]


def compare_autocast(model: QuietStarForCausalLM, engine: Engine, batch: Texts, thoughts: Tensor) -> None:
    """A step under bfloat16 autocast is close to the plain one, its gradients are float32, and it is not the same."""
    exact = train(model, PLAIN, batch, thoughts)
    model.zero_grad()
    with torch.autocast(model.device.type, torch.bfloat16):
        output = run(model, engine, batch, thoughts)
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert 0 < error(output.losses.base_nll, exact.losses.base_nll) < 0.03
    assert 0 < error(output.losses.talk_nll, exact.losses.talk_nll) < 0.1
    for name, parameter in model.named_parameters():
        assert parameter.grad.dtype == torch.float32, name
        assert 0 < error(parameter.grad, exact.gradients[name]) < 0.3, name


@FAMILIES
@pytest.mark.parametrize("engine", [PLAIN, Engine("blocked"), Engine("blocked", 3), Engine("reference", 3)], ids=str)
def test_autocast_is_close_to_float32(base, engine):
    model, batch = quiet_star(base).train(), texts()
    compare_autocast(model, engine, batch, given_thoughts())


TRAINED = {
    "mixing head and meta-tokens": ("mixing_head", "start_embedding", "end_embedding"),
    "mixing head": ("mixing_head",),
    "a meta-token": ("end_embedding",),
    "all but the embeddings": ("mixing_head", "start_embedding", "end_embedding", "base.model.layers"),
    "LM head": ("base.lm_head",),
}


@pytest.mark.parametrize("engine", [PLAIN, *ENGINES], ids=str)
@pytest.mark.parametrize("trained", TRAINED.values(), ids=TRAINED.keys())
def test_frozen_parameters_change_no_other_gradient(trained, engine):
    model, batch = quiet_star({**LLAMA, "tie_word_embeddings": False}), texts()
    full = train(model, PLAIN, batch)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    expected = {name: g if name.startswith(trained) else None for name, g in full.gradients.items()}
    model.zero_grad(set_to_none=True)
    found = train(model, engine, batch)
    compare_outputs(found.output, full.output, 1e-5)
    compare_gradients(found.gradients, expected, 1e-5)


@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_evaluation_without_gradients(engine):
    model, batch = quiet_star(LLAMA), texts("right")
    expected = train(model, PLAIN, batch)
    with torch.no_grad():
        output = run(model, engine, batch)
    assert not output.loss.requires_grad
    compare_outputs(output, expected.output, 1e-5)


@pytest.mark.parametrize("engine", [PLAIN, *ENGINES], ids=str)
def test_what_is_reported_holds_no_graph(engine):
    output = run(quiet_star(LLAMA), engine, texts())
    held = {f.name for f in fields(Losses) if getattr(output.losses, f.name).requires_grad}
    assert held == {"total"}
    assert not output.weight.requires_grad
