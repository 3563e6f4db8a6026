"""On a CUDA GPU: its own path of attention, its draws and whole steps equal the CPU's and the plain operations'."""

import copy
from collections.abc import Iterator

import pytest
import torch

from pipeline.bench.measure import recompute_activations
from pipeline.thought import attention_flex as flex
from pipeline.thought import attention_reference as reference
from pipeline.thought.sampler import Sampling, draw, invert, uniforms
from pipeline.thought.step import Engine
from tests.thought.test_attention import Call, Shape, make
from tests.thought.test_engine import LOSSES, PLAIN, compare, compare_autocast, compare_outputs, run, train
from tests.thought.test_sampler import chances
from tests.thought.tiny import (
    ENDING,
    GEMMA2,
    LLAMA,
    Texts,
    compare_gradients,
    error,
    given_thoughts,
    left_padded,
    quiet_star,
    random_ids,
    texts,
)

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
    call = make(shape, dtype, DEVICE)
    exact = call.to(torch.float64).outcome(reference.attend)
    for found, expected in zip(call.outcome(flex.attend), exact, strict=True):
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


def test_flex_holds_no_scores_for_texts_of_many_lengths():
    """torch.compile gives up on a function after eight versions, and FlexAttention as written holds every score."""
    for tokens in (*range(480, 490), 1000):
        shape = Shape(positions=tuple(range(tokens)), tokens=tokens, texts=1, new=8, size=32)
        call = make(shape, torch.float32, DEVICE)
        scores = call.inputs[0].numel() // 32 * tokens * 4  # bytes
        assert memory(flex.attend, call) < scores
    assert memory(reference.attend, call) > scores


THOUGHTS = given_thoughts(tokens=TOKENS)


def batch(padding: str | None = None) -> Texts:
    return Texts(*(x if x is None else x.to(DEVICE) for x in texts(padding, TOKENS)))


ENGINES = [Engine(), Engine("reference"), Engine("auto", 16), Engine("auto", 1)]
STEPS = [(base, engine, None) for base in BASES.values() for engine in ENGINES]
STEPS += [(base, Engine(), padding) for base in BASES.values() for padding in ("left", "right")]
STEPS += [({**BASE, "head_dim": 4}, Engine(), None)]  # FlexAttention's kernels refuse such small heads


@pytest.mark.parametrize(("base", "engine", "padding"), STEPS)
def test_a_step_equals_the_cpus(base, engine, padding):
    model = quiet_star(base)
    expected = train(model, PLAIN, texts(padding, TOKENS), THOUGHTS)
    found = train(copy.deepcopy(model).to(DEVICE), engine, batch(padding), THOUGHTS.to(DEVICE))
    for name in LOSSES:
        assert error(getattr(found.losses, name).cpu(), getattr(expected.losses, name)) < 1e-4, name
    on_cpu = {name: None if g is None else g.cpu() for name, g in found.gradients.items()}
    compare_gradients(on_cpu, expected.gradients, 1e-3)


@pytest.mark.parametrize("settings", [{}, ENDING], ids=["K tokens", "ending"])
@pytest.mark.parametrize("engine", ENGINES, ids=str)
def test_a_sampled_step_equals_the_plain_one(engine, settings):
    """Thoughts too: on one device, they do not depend on how it computes."""
    model, there = quiet_star(BASE, **settings).to(DEVICE), batch()
    compare(train(model, engine, there), train(model, PLAIN, there), 1e-4)


def test_activation_checkpointing_changes_nothing():
    model, there, thoughts = quiet_star(BASE).to(DEVICE).train(), batch(), THOUGHTS.to(DEVICE)
    expected = train(model, Engine(), there, thoughts)
    recompute_activations(model)
    for engine in (Engine(), Engine("auto", 16)):
        compare(train(model, engine, there, thoughts), expected, 1e-4)


@pytest.mark.parametrize("positions", [None, 16])
def test_autocast_is_close_to_float32(positions):
    model = quiet_star(BASE).to(DEVICE).train()
    compare_autocast(model, Engine("auto", positions), batch(), THOUGHTS.to(DEVICE))


def test_a_sampled_step_under_autocast_is_finite():
    model = quiet_star(BASE).to(DEVICE).train()
    with torch.autocast(DEVICE, torch.bfloat16):
        output = run(model, Engine(), batch())
    output.loss.backward()
    assert output.loss.isfinite()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_evaluation_equals_training():
    model, there = quiet_star(BASE).to(DEVICE).eval(), batch()
    expected = run(model, PLAIN, there)
    with torch.no_grad():
        compare_outputs(run(model, Engine("auto", 16), there), expected, 1e-4)


@torch.no_grad()
def test_prediction_and_generation_equal_the_cpus():
    """Greedy; the prompts are padded on the left."""
    model, (ids, mask) = quiet_star(BASE).eval(), left_padded([random_ids(length) for length in (12, 8, 12)])
    thoughts = random_ids(3, 1, 12, 3)
    logits, written = (
        model(ids, thought_ids=thoughts).logits,
        model.generate(ids, attention_mask=mask, max_new_tokens=8),
    )
    model, ids, mask = model.to(DEVICE), ids.to(DEVICE), mask.to(DEVICE)
    found = model.generate(ids, attention_mask=mask, max_new_tokens=8)
    assert found.device.type == DEVICE
    assert torch.equal(found.cpu(), written)
    assert error(model(ids, thought_ids=thoughts.to(DEVICE)).logits.cpu(), logits) < 1e-4


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
