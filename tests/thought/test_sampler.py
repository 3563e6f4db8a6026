"""Draws: what they depend on, what they may be, and how they are distributed."""

import math
from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.thought.head import CHUNK_LOGITS, Head, ban
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, Thoughts, draw, entropy, invert, sample, truncate, uniforms
from tests.thought.tiny import ARCHITECTURES, ENDING, FOUR_BASES, quiet_star, random_ids, rows_of, slow

SAMPLED = Sampling(temperature=1.0, seed=5)


def think(
    model: QuietStarForCausalLM,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: list[int] | None = None,
    rationales: int = 2,
    keys: list[int] | None = None,
    sampling: Sampling = SAMPLED,
) -> Thoughts:
    where = torch.tensor(range(ids.shape[1]) if positions is None else positions)
    with torch.no_grad():
        text = model.thinker.read(ids, mask, None if keys is None else torch.tensor(keys))
        return model.thinker.sample(text, where, rationales, sampling)


def draws(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    return draw(logits, logits.softmax(-1), sampling, uniform)


@FOUR_BASES
def test_a_draw_depends_on_its_own_text_position_and_thought_alone(name):
    """Not on the batch, on padding, on later text or on what else is sampled; texts are 0 .. B-1 unless named."""
    model, ids, keys = quiet_star(ARCHITECTURES[name]).eval(), random_ids(3, 6), [4, 7, 9]
    padding, real = torch.zeros(1, 3, dtype=torch.long), torch.ones(1, 6, dtype=torch.long)
    whole, alone = think(model, ids, keys=keys).ids, think(model, ids[1:2], keys=[7]).ids
    assert torch.equal(whole[1:2], alone)
    left = think(model, torch.cat([padding, ids[1:2]], 1), torch.cat([padding, real], 1), keys=[7]).ids
    right = think(model, torch.cat([ids[1:2], padding], 1), torch.cat([real, padding], 1), keys=[7]).ids
    assert torch.equal(left[:, :, 3:], alone)
    assert torch.equal(right[:, :, :6], alone)
    assert torch.equal(think(model, ids, keys=keys, positions=[2, 5]).ids, whole[:, :, [2, 5]])
    assert torch.equal(think(model, ids, keys=keys, rationales=1).ids, whole[:, :1])
    assert torch.equal(think(model, ids[:, :4], keys=keys).ids, whole[:, :, :4])
    assert torch.equal(think(model, ids).ids, think(model, ids, keys=[0, 1, 2]).ids)
    for other in (think(model, ids, keys=[5, 7, 9]), think(model, ids, keys=keys, sampling=Sampling(1.0, seed=6))):
        assert not torch.equal(other.ids, whole)
    assert not torch.equal(whole[:, 0], whole[:, 1])


@FOUR_BASES
@pytest.mark.parametrize("settings", [{}, ENDING], ids=["K tokens", "ending"])
def test_thoughts_equal_recomputation(name, settings):
    """Greedy ones, and the same numbers drawn from distributions recomputed token by token, of this entropy.

    After the draw that ends a thought, its id is repeated.
    """
    model, ids = quiet_star(ARCHITECTURES[name], **settings).eval(), random_ids(1, 5)
    greedy, sampled = think(model, ids, sampling=Sampling(temperature=0.0)), think(model, ids, keys=[3])
    text, reference = ids[0].tolist(), slow(model)
    for i in range(5):
        assert_thought(greedy, (0, 0, i), reference.greedy_thought(text, i), model.config.endings)
        for r in range(2):
            so_far: list[int] = []
            while len(so_far) < model.config.thought_tokens and reference.kept(so_far) == so_far:
                step = len(so_far)
                logits = reference.next_thought_token(text, i, so_far).detach()
                chance = uniforms(5, torch.tensor([3]), 2, torch.tensor([[i]]), step)[0, r, 0]
                so_far.append(int(draws(logits[None], SAMPLED, chance[None])))
                expected = torch.distributions.Categorical(logits=logits).entropy()
                assert sampled.entropy[0, r, i, step].item() == pytest.approx(expected.item(), rel=1e-5)
            assert_thought(sampled, (0, r, i), so_far, model.config.endings)
    assert (len(sampled.lengths.unique()) > 1) == bool(settings)


def assert_thought(thoughts: Thoughts, at: tuple[int, int, int], draws: list[int], endings: list[int]) -> None:
    count = thoughts.ids.shape[-1]
    assert thoughts.ids[at].tolist() == draws + draws[-1:] * (count - len(draws))
    assert thoughts.lengths[at] == len(draws) - (draws[-1] in endings)
    assert not thoughts.entropy[at][len(draws) :].any()
    assert thoughts.mean_entropy[at] == pytest.approx(thoughts.entropy[at][: len(draws)].mean().item())


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -0.1), ("temperature", math.inf), ("temperature", math.nan), ("top_k", 0), ("top_k", -1)]
    + [("top_p", 0.0), ("top_p", -0.5), ("top_p", 1.01), ("top_p", math.nan)],
)
def test_a_number_that_means_nothing_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} is {value}, but must be"):
        Sampling(**{setting: value})
    Sampling(temperature=0, top_k=1, top_p=1)
    Sampling(temperature=1e6, seed=-1, top_p=1e-9)


def quantile(freedom: int) -> float:
    """The 99.9 % quantile of chi-square, by Wilson and Hilferty: 24.5 for 7 degrees of freedom, where it is 24.3."""
    part = 2 / (9 * freedom)
    return freedom * (1 - part + 3.0902 * math.sqrt(part)) ** 3


def assert_distributed(values: Tensor, probabilities: Tensor) -> None:
    """As ``probabilities``; never one that has none."""
    counts, possible = values.bincount(minlength=len(probabilities)), probabilities > 0
    assert not counts[~possible].any()
    expected = probabilities[possible] / probabilities.sum() * len(values)
    assert expected.min() > 5
    chi_square = ((counts[possible] - expected) ** 2 / expected).sum().item()
    assert chi_square < quantile(max(1, int(possible.sum()) - 1))


def chances(count: int, device: str = "cpu") -> Tensor:
    return uniforms(1, torch.arange(count), 1, torch.zeros(count, 1, dtype=torch.long, device=device), 0).flatten()


def spread(tokens: int) -> Tensor:
    """Logits in no order, of which no two are equal."""
    return torch.randn(tokens, generator=torch.Generator().manual_seed(tokens))


def allowed(probabilities: list[float], top_k: int | None, top_p: float | None) -> list[int]:
    """The likeliest ``top_k``, and of these the likeliest until they have ``top_p`` of what these have."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:top_k]
    if top_p is None:
        return sorted(order)
    enough = top_p * sum(probabilities[i] for i in order)
    before = accumulate((probabilities[i] for i in order), initial=0)
    return sorted(i for i, already in zip(order, before, strict=False) if already < enough)


@pytest.mark.parametrize(
    ("tokens", "temperature", "top_k", "top_p"),
    [(2, 0.7, None, None), (3, 2.0, None, None), (8, 1.0, None, None), (29, 0.7, None, None), (29, 2.0, None, None)]
    + [(29, 0.7, 1, None), (29, 1.0, 4, None), (29, 2.0, None, 0.5), (29, 0.7, None, 0.95), (29, 1.0, 6, 0.7)]
    + [(29, 2.0, 3, 0.999), (29, 1.0, 40, 0.3)],
)
def test_draws_of_the_likeliest_tokens_keep_their_proportions(tokens, temperature, top_k, top_p):
    """Top k, then top p, of the softmax at this temperature; in blocks of one size and of two."""
    logits, count = spread(tokens), 20_000
    drawn = draws(logits.expand(count, -1), Sampling(temperature, 0, top_k, top_p), chances(count))
    probabilities = (logits.double() / temperature).softmax(0)
    expected = torch.zeros(tokens, dtype=torch.double)
    kept = allowed(probabilities.tolist(), top_k, top_p)
    expected[kept] = probabilities[kept]
    assert_distributed(drawn, expected)


@given(
    st.lists(st.integers(0, 999), min_size=1, max_size=30, unique=True).filter(any),
    st.one_of(st.none(), st.integers(1, 33)),
    st.one_of(st.none(), st.integers(1, 16).map(lambda sixteenths: sixteenths / 16)),
)
def test_truncation_keeps_the_likeliest_as_they_are(values, top_k, top_p):
    weights = torch.tensor([values], dtype=torch.double)
    kept = set(allowed(values, top_k, top_p))
    expected = [value if i in kept else 0 for i, value in enumerate(values)]
    assert truncate(weights, Sampling(top_k=top_k, top_p=top_p))[0].tolist() == expected


EDGES = st.sampled_from([0.0, 1 - 2**-24, math.nextafter(1.0, 0.0)])
NUMBERS = st.lists(st.integers(0, 9), min_size=1, max_size=50).filter(any)


@given(NUMBERS, st.lists(st.one_of(EDGES, st.integers(0, 2**12 - 1).map(lambda i: i / 2**12)), min_size=1, max_size=9))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inversion_is_exact_where_sums_are(dtype, values, numbers):
    """Against fractions: the first index whose running sum is above that share of all. No weight of 0 is chosen."""
    expected = []
    for number in numbers:
        share = Fraction(number) * sum(values)
        expected.append(next(i for i, running in enumerate(accumulate(values)) if running > share))
    weights = torch.tensor(values, dtype=dtype).expand(len(numbers), -1)
    assert invert(weights, torch.tensor(numbers, dtype=torch.double)).tolist() == expected
    assert all(values[i] > 0 for i in expected)


@pytest.mark.parametrize("tokens", [1, 2, 3, 4, 5, 8, 9, 10, 24, 25, 26, 1000])
def test_every_token_can_be_drawn(tokens):
    """At the smallest and at the largest number that draws it, whatever the size of the last block."""
    weights = torch.ones(tokens, tokens, dtype=torch.double)
    order = torch.arange(tokens)
    first, last = ((order.double() + place) / tokens for place in (1e-9, 1 - 1e-9))
    assert torch.equal(invert(weights, first), order)
    assert torch.equal(invert(weights, last), order)


REAL = st.one_of(st.just(0.0), st.floats(0, 2.0**90, width=32, allow_subnormal=False))


@given(st.lists(REAL, min_size=1, max_size=50).filter(any), st.one_of(EDGES, st.floats(0, 1, exclude_max=True)))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_inversion_is_right_but_for_rounding(dtype, values, number):
    """Weights of any size; still none of 0 is chosen."""
    weights = torch.tensor([values], dtype=dtype)
    index = invert(weights, torch.tensor([number], dtype=torch.double)).item()
    assert values[index] > 0
    slack = torch.finfo(dtype).eps * 100 * sum(values)
    assert sum(values[:index]) - slack <= number * sum(values) <= sum(values[: index + 1]) + slack


@pytest.mark.parametrize("tokens", [1, 2, 3, 7, 23, 50])
def test_logits_that_are_not_numbers_give_some_index(tokens):
    drawn = draws(torch.full((4, tokens), math.nan), Sampling(), torch.tensor([0.0, 0.3, 0.7, 1 - 2**-24]))
    assert ((drawn >= 0) & (drawn < tokens)).all()


def some_rows() -> tuple[Head, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(*shape, 5, generator=generator).double() for shape in ((23,), (2, 3, 4)))
    return Head(weight), hidden, chances(24).view(2, 3, 4)


@given(st.integers(1, 30 * 23))
def test_samples_do_not_depend_on_the_chunks(chunk_logits):
    head, hidden, numbers = some_rows()
    expected, certain = sample(head, hidden, [3, 4], SAMPLED, numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CHUNK_LOGITS, "cpu", chunk_logits)
        counts = rows_of(Head, "logits", patch)
        ids, entropies = sample(head, hidden, [3, 4], SAMPLED, numbers)
    assert torch.equal(ids, expected)
    torch.testing.assert_close(entropies, certain, rtol=1e-12, atol=1e-12)
    assert sum(counts) == 24
    assert max(counts) <= max(1, chunk_logits // 23)


@pytest.mark.parametrize("sampling", [SAMPLED, Sampling(0.0), Sampling(2.0, top_k=9, top_p=0.8)], ids=str)
def test_samples_are_draws_and_their_entropy_is_the_models(sampling):
    """At temperature 1 and of all tokens that are not banned, whatever the sampling."""
    head, hidden, numbers = some_rows()
    ids, found = sample(head, hidden, [3, 22], sampling, numbers)
    logits = ban(hidden @ head.weight.T, [3, 22])
    assert torch.equal(ids.flatten(), draws(logits.flatten(0, 2), sampling, numbers.flatten()))
    allowed_logits = logits[..., [i for i in range(23) if i not in (3, 22)]]
    expected = torch.distributions.Categorical(logits=allowed_logits).entropy()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("banned", [[], [0, 11]])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)], ids=str)
def test_entropy_is_its_definition(dtype, tolerance, banned):
    """From even distributions to those of one token."""
    scale = torch.tensor([0.0, 0.1, 1.0, 10.0, 1000.0])
    logits = ban((spread(12) * scale[:, None]).to(dtype), banned)
    probabilities = logits.double().softmax(-1)
    expected = -torch.special.xlogy(probabilities, probabilities).sum(-1)
    found = entropy(logits, logits.softmax(-1))
    assert found.dtype == dtype
    torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)
    assert found[0].item() == pytest.approx(math.log(12 - len(banned)), rel=tolerance)


@pytest.mark.parametrize("varied", ["seed", "text", "thought", "position", "step"])
def test_uniforms_are_uniform_along_every_axis(varied):
    """Twenty bins, and each number independent of the next (a lag plot of 5 x 5 cells)."""
    numbers = along(varied, 8000)
    assert_distributed((numbers * 20).long(), torch.ones(20))
    assert_distributed((numbers[:-1] * 5).long() * 5 + (numbers[1:] * 5).long(), torch.ones(25))


def along(varied: str, count: int) -> Tensor:
    one, many = torch.zeros(1, dtype=torch.long), torch.arange(count)
    if varied == "text":
        return uniforms(0, many, 1, one.expand(count, 1), 0).flatten()
    if varied == "thought":
        return uniforms(0, one, count, one[None], 0).flatten()
    if varied == "position":
        return uniforms(0, one, 1, many[None], 0).flatten()
    calls = [(i, 0) if varied == "seed" else (0, i) for i in range(count // 8)]
    # eight texts each, so that fewer calls are needed
    return torch.cat([uniforms(seed, many[:8], 1, one.expand(8, 1), step)[:, 0] for seed, step in calls], 1).flatten()


def test_uniforms_are_all_different_for_different_names():
    numbers = uniforms(0, torch.arange(8), 4, torch.arange(32).expand(8, 32), 0)
    assert numbers.unique().numel() == numbers.numel()
