"""On a CUDA GPU: its own path of attention, its draws and whole steps equal the CPU's and the plain operations'."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pipeline.thought import attention_flex as flex
from pipeline.thought import attention_reference as reference
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, draw, invert, uniforms
from pipeline.thought.step import Engine
from tests.thought.test_attention import Call, Shape, make
from tests.thought.test_engine import (
    LOSSES,
    PLAIN,
    Step,
    compare,
    compare_autocast,
    compare_outputs,
    run,
    train,
)
from tests.thought.tiny import GEMMA2, LLAMA, Texts, compare_gradients, error, quiet_star, random_ids, texts

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")]

WIDE = {"head_dim": 16, "max_position_embeddings": 256}  # FlexAttention's kernels want heads of at least 16
BASES = {"llama": {**LLAMA, **WIDE}, "gemma2": {**GEMMA2, **WIDE, "query_pre_attn_scalar": 16}}
BASE = BASES["llama"]
TOKENS = 37


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """float32 is float32, and no test is short of FlexAttention kernels because earlier ones compiled theirs."""
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    torch._dynamo.reset()
    yield
    torch.set_float32_matmul_precision(precision)


def on_device(call: Call) -> Call:
    rows = call.rows
    rows = replace(
        rows,
        positions=rows.positions.to(DEVICE),
        position_ids=rows.position_ids.to(DEVICE),
        text_position_ids=rows.text_position_ids.to(DEVICE),
    )
    return Call(rows, tuple(x.to(DEVICE) for x in call.inputs), call.style, call.gradient.to(DEVICE))


FLEX = {
    "one tile": Shape(size=16),
    "grouped heads": Shape(positions=tuple(range(50)), tokens=50, new=8, groups=2, fold=3, size=16),
    "a head for each group": Shape(positions=tuple(range(20)), tokens=20, groups=3, fold=1, size=64),
    "more text than a tile": Shape(positions=tuple(range(130)), tokens=130, rationales=3, new=7, size=64),
    "a text of two tiles": Shape(positions=tuple(range(256)), tokens=256, texts=1, new=4, size=32),
    "a slice between": Shape(positions=tuple(range(60, 120)), tokens=200, new=8, size=32),
    "the last, short slice": Shape(positions=tuple(range(180, 200)), tokens=200, new=8, size=32),
    "positions apart": Shape(positions=(0, 3, 127, 128, 199), tokens=200, new=5, size=16),
}


def check_flex(shape: Shape, dtype: torch.dtype, tolerance: float) -> None:
    call = on_device(make(shape, dtype))
    double = replace(call, inputs=tuple(x.double() for x in call.inputs), gradient=call.gradient.double())
    for found, expected in zip(call.outcome(flex.attend), double.outcome(reference.attend), strict=True):
        assert found.dtype == dtype
        assert error(found.double(), expected) < tolerance


@pytest.mark.parametrize("shape", FLEX.values(), ids=FLEX.keys())
def test_flex_and_its_gradients_equal_the_reference(shape):
    check_flex(shape, torch.float32, 1e-5)
    check_flex(shape, torch.bfloat16, 2e-2)


def test_slices_of_one_size_share_a_kernel_and_not_a_mask():
    """Masks of other positions must not be taken for those that the kernel was compiled with."""
    for start in (0, 60, 120):
        check_flex(Shape(positions=tuple(range(start, start + 60)), tokens=200, new=8, size=32), torch.float32, 1e-5)


def memory(attend: object, call: Call) -> int:
    """Bytes that a forward and backward pass takes at its peak, once its kernel and its mask have been made."""
    call.outcome(attend)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call.outcome(attend)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def test_flex_holds_no_scores():
    call = on_device(make(Shape(positions=tuple(range(1000)), tokens=1000, texts=1, new=8, size=32), torch.float32))
    query = call.inputs[0]
    scores = query.numel() // query.shape[-1] * 1000 * query.element_size()
    assert memory(reference.attend, call) > scores
    assert memory(flex.attend, call) < scores


def test_flex_stays_a_kernel_for_texts_of_many_lengths():
    """torch.compile gives up on a function after eight versions, and FlexAttention as written holds every score."""
    for tokens in range(480, 490):
        positions = tuple(range(tokens))
        call = on_device(make(Shape(positions=positions, tokens=tokens, texts=1, new=8, size=32), torch.float32))
        query = call.inputs[0]
        assert memory(flex.attend, call) < query.numel() // query.shape[-1] * tokens * query.element_size()


def batch(padding: str | None = None) -> Texts:
    return texts(padding, TOKENS)


def moved(texts: Texts) -> Texts:
    return Texts(*(x if x is None else x.to(DEVICE) for x in texts))


def given_thoughts() -> Tensor:
    return random_ids(2, 2, TOKENS, 3, seed=2)


def fetched(step: Step) -> Step:
    """The same step's numbers, on the CPU."""
    losses = replace(step.losses, **{name: getattr(step.losses, name).detach().cpu() for name in LOSSES})
    output = replace(step.output, loss=losses.total, losses=losses)
    return Step(output, {name: g if g is None else g.cpu() for name, g in step.gradients.items()})


def check_against_cpu(model: QuietStarForCausalLM, engine: Engine, batch: Texts) -> None:
    expected = train(model, PLAIN, batch, given_thoughts())
    other = copy.deepcopy(model).to(DEVICE)
    found = fetched(train(other, engine, moved(batch), given_thoughts().to(DEVICE)))
    for name in LOSSES:
        assert error(getattr(found.losses, name), getattr(expected.losses, name)) < 1e-4, name
    compare_gradients(found.gradients, expected.gradients, 1e-3)


ENGINES = pytest.mark.parametrize(
    "engine", [Engine(), Engine("reference"), Engine("auto", 16), Engine("auto", 1)], ids=str
)


@ENGINES
@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_a_step_equals_the_cpus(base, engine):
    check_against_cpu(quiet_star(base), engine, batch())


@pytest.mark.parametrize("padding", ["left", "right"])
@pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())
def test_a_step_on_padded_texts_equals_the_cpus(base, padding):
    check_against_cpu(quiet_star(base), Engine(), batch(padding))


def test_a_step_with_small_heads_equals_the_cpus():
    """FlexAttention's kernels refuse them."""
    check_against_cpu(quiet_star({**BASE, "head_dim": 4}), Engine(), batch())


@ENGINES
def test_a_sampled_step_equals_the_plain_one(engine):
    """Thoughts too: on one device, they do not depend on how it computes."""
    model, there = quiet_star(BASE).to(DEVICE), moved(batch())
    compare(train(model, engine, there), train(model, PLAIN, there), 1e-4)


def test_activation_checkpointing_changes_nothing():
    model, there, thoughts = quiet_star(BASE).to(DEVICE).train(), moved(batch()), given_thoughts().to(DEVICE)
    expected = train(model, Engine(), there, thoughts)
    model.activation_checkpointing_enable()
    for engine in (Engine(), Engine("auto", 16)):
        compare(train(model, engine, there, thoughts), expected, 1e-4)


@pytest.mark.parametrize("positions", [None, 16])
def test_autocast_is_close_to_float32(positions):
    model, there, thoughts = quiet_star(BASE).to(DEVICE).train(), moved(batch()), given_thoughts().to(DEVICE)
    compare_autocast(model, Engine("auto", positions), there, thoughts)


def test_a_sampled_step_under_autocast_is_finite():
    model = quiet_star(BASE).to(DEVICE).train()
    with torch.autocast(DEVICE, torch.bfloat16):
        output = run(model, Engine(), moved(batch()))
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_evaluation_equals_training():
    model, there = quiet_star(BASE).to(DEVICE).eval(), moved(batch())
    expected = run(model, PLAIN, there)
    with torch.no_grad():
        compare_outputs(run(model, Engine("auto", 16), there), expected, 1e-4)


@torch.no_grad()
def test_generation_equals_the_cpus():
    """Greedy; the prompts are padded on the left."""
    model, ids = quiet_star(BASE).eval(), random_ids(3, 12)
    mask = torch.ones_like(ids)
    mask[1, :4] = 0
    expected = model.generate(ids, mask, max_new_tokens=8)
    found = model.to(DEVICE).generate(ids.to(DEVICE), mask.to(DEVICE), max_new_tokens=8)
    assert found.device.type == DEVICE
    assert torch.equal(found.cpu(), expected)


@torch.no_grad()
def test_prediction_equals_the_cpus():
    model, ids = quiet_star(BASE).eval(), random_ids(2, 12)
    expected = model(ids, thought_ids=random_ids(2, 1, 12, 3))
    found = model.to(DEVICE)(ids.to(DEVICE), thought_ids=random_ids(2, 1, 12, 3).to(DEVICE))
    assert error(found.logits.cpu(), expected.logits) < 1e-4


def chances(rows: int, device: str = "cpu") -> Tensor:
    return uniforms(1, torch.arange(rows), 1, torch.zeros(rows, 1, dtype=torch.long, device=device), 0).flatten()


def test_uniforms_are_the_same_bit_by_bit():
    places = torch.arange(100).expand(5, 100)
    expected = uniforms(-3, torch.arange(5), 4, places, 2)
    found = uniforms(-3, torch.arange(5).to(DEVICE), 4, places.to(DEVICE), 2)
    assert found.device.type == DEVICE
    assert torch.equal(found.cpu(), expected)


SAMPLINGS = [Sampling(), Sampling(0.0), Sampling(0.7), Sampling(top_k=50), Sampling(2.0, 0, 40, 0.8)]


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=str)
def test_draws_equal_the_cpus(sampling):
    """But for those where rounding moves a token's border over the uniform number."""
    logits = 3 * torch.randn(4096, 503, generator=torch.Generator().manual_seed(0))
    expected = draw(logits, logits.softmax(-1), sampling, chances(4096))
    there = logits.to(DEVICE)
    found = draw(there, there.softmax(-1), sampling, chances(4096, DEVICE))
    assert (found.cpu() != expected).float().mean() < 2e-3


@pytest.mark.parametrize("vocabulary", [4096, 50257, 151936])
def test_a_token_of_weight_0_is_never_chosen(vocabulary):
    """A parallel cumulative sum is not monotone: it may fall where the weights are 0 or nearly so."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    weights = torch.rand(2048, vocabulary, generator=generator, device=DEVICE).pow(8)
    weights[torch.rand(2048, vocabulary, generator=generator, device=DEVICE) < 0.9] = 0
    weights[:, -100:] = 0
    weights[:512, :-1000] *= 1e-6
    assert weights.sum(-1).all()
    extremes = [torch.full((2048,), c, dtype=torch.float64, device=DEVICE) for c in (0.0, 0.5, 1 - 2**-24)]
    for uniform in (chances(2048, DEVICE), *extremes):
        index = invert(weights, uniform)
        assert ((index >= 0) & (index < vocabulary)).all()
        assert weights.gather(1, index.unsqueeze(1)).all()


def test_a_larger_number_chooses_no_earlier_token():
    """But for rounding where two blocks of tokens meet: an index may fall by no weight worth the name."""
    weights = torch.rand(64, 50257, generator=torch.Generator(DEVICE).manual_seed(0), device=DEVICE)
    steps = torch.arange(257, device=DEVICE, dtype=torch.float64).clamp(max=256 - 2**-16) / 256
    index = torch.stack([invert(weights, step.expand(64)) for step in steps], 1)
    shares = weights.double().cumsum(-1) / weights.double().sum(-1, keepdim=True)
    assert (shares.gather(1, index) - steps).abs().max() < 1e-4
    assert (index.diff(dim=1) > 0).all()
