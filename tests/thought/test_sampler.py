"""Draws: what they depend on, what they may be, and how they are distributed."""

import math
from fractions import Fraction
from itertools import accumulate

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.thought import sampler
from pipeline.thought.head import BANNED_LOGIT, Head, ban
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling, draw, entropy, invert, sample, truncate, uniforms
from tests.thought.tiny import END, GEMMA2, GPT2, LLAMA, MISTRAL_WINDOW, START, quiet_star, random_ids, slow

SAMPLED = Sampling(temperature=1.0, seed=5)
ALL_BASES = pytest.mark.parametrize(
    "base", [LLAMA, MISTRAL_WINDOW, GEMMA2, GPT2], ids=["llama", "mistral, window", "gemma2", "gpt2"]
)


def thoughts(
    model: QuietStarForCausalLM,
    ids: Tensor,
    mask: Tensor | None = None,
    positions: list[int] | None = None,
    rationales: int = 2,
    keys: list[int] | None = None,
    sampling: Sampling = SAMPLED,
) -> Tensor:
    """Sampled ids (B, R, P, K)."""
    with torch.no_grad():
        _, text = model.decoder.read(ids, mask)
    where = torch.arange(ids.shape[1]) if positions is None else torch.tensor(positions)
    return model.think(text, where, rationales, sampling, None if keys is None else torch.tensor(keys)).ids


def draws(logits: Tensor, sampling: Sampling, uniform: Tensor) -> Tensor:
    return draw(logits, logits.softmax(-1), sampling, uniform)


@pytest.fixture(scope="module")
def model():
    return quiet_star(LLAMA).eval()


def test_a_text_alone_draws_what_it_draws_in_a_batch(model):
    ids = random_ids(3, 8)
    together = thoughts(model, ids, keys=[4, 7, 9])
    assert torch.equal(together[1:2], thoughts(model, ids[1:2], keys=[7]))
    assert not torch.equal(together[1:2], thoughts(model, ids[1:2], keys=[4]))


def test_texts_are_named_by_their_place_unless_given(model):
    ids = random_ids(3, 8)
    assert torch.equal(thoughts(model, ids), thoughts(model, ids, keys=[0, 1, 2]))


@ALL_BASES
def test_padding_does_not_change_a_draw(base):
    model, ids = quiet_star(base).eval(), random_ids(1, 6)
    padding = torch.zeros(1, 3, dtype=torch.long)
    real = torch.ones_like(ids)
    alone = thoughts(model, ids)
    left = thoughts(model, torch.cat([padding, ids], 1), torch.cat([padding, real], 1))
    right = thoughts(model, torch.cat([ids, padding], 1), torch.cat([real, padding], 1))
    assert torch.equal(left[:, :, 3:], alone)
    assert torch.equal(right[:, :, :6], alone)


def test_other_positions_and_other_thoughts_do_not_change_a_draw(model):
    ids = random_ids(2, 8)
    every = thoughts(model, ids, rationales=3)
    assert torch.equal(thoughts(model, ids, positions=[2, 7], rationales=3), every[:, :, [2, 7]])
    assert torch.equal(thoughts(model, ids, rationales=1), every[:, :1])


def test_the_text_after_a_position_does_not_change_its_draws(model):
    ids = random_ids(2, 8)
    assert torch.equal(thoughts(model, ids[:, :5]), thoughts(model, ids)[:, :, :5])


def test_seeds_and_thoughts_differ(model):
    ids = random_ids(2, 8)
    first = thoughts(model, ids)
    assert torch.equal(first, thoughts(model, ids))
    assert not torch.equal(first, thoughts(model, ids, sampling=Sampling(1.0, seed=6)))
    assert not torch.equal(first[:, 0], first[:, 1])


@ALL_BASES
def test_greedy_thoughts_equal_recomputation(base):
    model, ids = quiet_star(base).eval(), random_ids(2, 6)
    actual = thoughts(model, ids, rationales=1, sampling=Sampling(temperature=0.0))
    reference = slow(model)
    for b, text in enumerate(ids.tolist()):
        for i in range(len(text)):
            assert actual[b, 0, i].tolist() == reference.greedy_thought(text, i)


def test_sampled_thoughts_equal_recomputation(model):
    """The same numbers drawn from distributions recomputed token by token."""
    ids = random_ids(1, 5)
    actual = thoughts(model, ids, keys=[3])
    reference = slow(model)
    for i in range(5):
        for r in range(2):
            so_far: list[int] = []
            for step in range(model.config.thought_tokens):
                logits = reference.next_thought_token(ids[0].tolist(), i, so_far).detach()
                chance = uniforms(5, torch.tensor([3]), 2, torch.tensor([[i]]), step)[0, r, 0]
                so_far.append(int(draws(logits[None], SAMPLED, chance[None])))
            assert actual[0, r, i].tolist() == so_far


def test_entropy_is_that_of_the_distributions(model):
    ids = random_ids(1, 4)
    with torch.no_grad():
        _, text = model.decoder.read(ids)
    found = model.think(text, torch.arange(4), 1, SAMPLED)
    reference = slow(model)
    for step in range(model.config.thought_tokens):
        logits = reference.next_thought_token(ids[0].tolist(), 2, found.ids[0, 0, 2, :step].tolist())
        expected = torch.distributions.Categorical(logits=logits).entropy()
        assert found.entropy[0, 0, 2, step].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 50.0])
def test_meta_tokens_are_never_sampled(temperature):
    """Not even where the model would write nothing else."""
    model = quiet_star({**LLAMA, "tie_word_embeddings": False}).eval()
    banned, allowed = [START, END], list(range(START))
    with torch.no_grad():
        state, _ = model.decoder.read(random_ids(3, 8))
        model.base.lm_head.weight[banned] = 50 * state.flatten(0, 1).mean(0)
    ids = random_ids(3, 8)
    unbanned = model.decoder.head.logits(model.decoder.read(ids)[0]).argmax(-1)
    assert torch.isin(unbanned, torch.tensor(banned)).any()
    drawn = thoughts(model, ids, sampling=Sampling(temperature, seed=1))
    assert torch.isin(drawn, torch.tensor(allowed)).all()


def test_top_1_of_a_thought_is_greedy(model):
    ids = random_ids(2, 6)
    greedy = thoughts(model, ids, sampling=Sampling(temperature=0.0))
    assert torch.equal(thoughts(model, ids, sampling=Sampling(3.0, seed=2, top_k=1)), greedy)
    assert not torch.equal(thoughts(model, ids, sampling=Sampling(3.0, seed=2, top_k=2)), greedy)


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", -0.1), ("temperature", math.inf), ("temperature", math.nan), ("top_k", 0), ("top_k", -1)]
    + [("top_p", 0.0), ("top_p", -0.5), ("top_p", 1.01), ("top_p", math.nan)],
)
def test_a_number_that_means_nothing_is_refused(setting, value):
    with pytest.raises(ValueError, match=f"^{setting} is {value}, but must be"):
        Sampling(**{setting: value})


def test_the_smallest_and_the_largest_settings_are_accepted():
    assert Sampling(temperature=0, top_k=1, top_p=1).top_p == 1
    assert Sampling(temperature=1e6, seed=-1, top_p=1e-9).top_k is None


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


def chances(count: int) -> Tensor:
    return uniforms(1, torch.arange(count), 1, torch.zeros(count, 1, dtype=torch.long), 0).flatten()


def spread(tokens: int) -> Tensor:
    """Logits in no order, of which no two are equal."""
    return torch.randn(tokens, generator=torch.Generator().manual_seed(tokens))


@pytest.mark.parametrize("tokens", [2, 3, 8, 29])
@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_have_the_softmax_distribution(temperature, tokens):
    """Whether or not the blocks that are searched first are all of one size."""
    logits, count = spread(tokens), 20_000
    drawn = draws(logits.expand(count, -1), Sampling(temperature), chances(count))
    assert_distributed(drawn, (logits.double() / temperature).softmax(0))


def allowed(probabilities: list[float], top_k: int | None, top_p: float | None) -> list[int]:
    """The likeliest ``top_k``, and of these the likeliest until they have ``top_p`` of what these have."""
    order = sorted(range(len(probabilities)), key=lambda i: -probabilities[i])[:top_k]
    if top_p is None:
        return sorted(order)
    enough = top_p * sum(probabilities[i] for i in order)
    before = accumulate((probabilities[i] for i in order), initial=0)
    return sorted(i for i, already in zip(order, before, strict=False) if already < enough)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
@pytest.mark.parametrize(
    ("top_k", "top_p"), [(1, None), (4, None), (None, 0.5), (None, 0.95), (6, 0.7), (3, 0.999), (40, 0.3)]
)
def test_draws_of_the_likeliest_tokens_keep_their_proportions(temperature, top_k, top_p):
    """Top k, then top p, of what the temperature has made of the probabilities."""
    logits, count = spread(29), 10_000
    drawn = draws(logits.expand(count, -1), Sampling(temperature, 0, top_k, top_p), chances(count))
    probabilities = (logits.double() / temperature).softmax(0)
    expected = torch.zeros(29, dtype=torch.double)
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


def test_top_p_is_of_what_top_k_left():
    probabilities = torch.tensor([[0.1, 0.4, 0.2, 0.3]])
    assert truncate(probabilities, Sampling(top_p=0.55)).count_nonzero() == 2
    assert truncate(probabilities, Sampling(top_k=2)).count_nonzero() == 2
    assert truncate(probabilities, Sampling(top_k=2, top_p=0.55)).nonzero().tolist() == [[0, 1]]


@pytest.mark.parametrize("sampling", [Sampling(top_k=29), Sampling(top_k=500), Sampling(top_p=1.0)], ids=str)
def test_settings_that_leave_out_nothing_change_nothing(sampling):
    logits, numbers = spread(29).expand(500, -1), chances(500)
    assert torch.equal(draws(logits, sampling, numbers), draws(logits, Sampling(), numbers))


@pytest.mark.parametrize("temperature", [0.5, 1.0, 9.0])
@pytest.mark.parametrize("top", [{"top_k": 1}, {"top_p": 1e-6}, {"top_k": 5, "top_p": 1e-6}], ids=str)
def test_only_the_likeliest_token_is_greedy(temperature, top):
    logits = torch.randn(200, 29, generator=torch.Generator().manual_seed(0))
    drawn = draws(logits, Sampling(temperature, **top), chances(200))
    assert torch.equal(drawn, logits.argmax(-1))
    assert torch.equal(drawn, draws(logits, Sampling(0.0), chances(200)))


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
    """A head, states (2, 3, 4, D) and as many numbers."""
    generator = torch.Generator().manual_seed(0)
    weight, hidden = (torch.randn(*shape, 5, generator=generator).double() for shape in ((23,), (2, 3, 4)))
    return Head(weight), hidden, chances(24).view(2, 3, 4)


def rows_predicted(patch: pytest.MonkeyPatch) -> list[int]:
    counts, logits = [], Head.logits

    def record(self: Head, hidden: Tensor) -> Tensor:
        counts.append(hidden.shape[:-1].numel())
        return logits(self, hidden)

    patch.setattr(Head, "logits", record)
    return counts


@given(st.integers(1, 30 * 23))
def test_samples_do_not_depend_on_the_chunks(chunk_logits):
    head, hidden, numbers = some_rows()
    expected, certain = sample(head, hidden, [3, 4], SAMPLED, numbers)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "CHUNK_LOGITS", chunk_logits)
        counts = rows_predicted(patch)
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


POSSIBLE = st.floats(-80, 80, width=32)
LOGITS = st.lists(st.one_of(st.just(BANNED_LOGIT), st.just(float("-inf")), POSSIBLE), min_size=1, max_size=40).filter(
    lambda values: max(values) > BANNED_LOGIT
)
CHANCE = st.one_of(st.just(0.0), st.just(1 - 2**-24), st.integers(0, 2**24 - 1).map(lambda i: i / 2**24))


@given(LOGITS, CHANCE, st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_a_token_of_no_probability_is_never_drawn(values, chance, temperature):
    logits = torch.tensor([values])
    drawn = draws(logits, Sampling(temperature), torch.tensor([chance], dtype=torch.float64)).item()
    assert 0 <= drawn < len(values)
    assert logits.div(temperature or 1.0).softmax(-1)[0, drawn] > 0


@given(st.lists(POSSIBLE, min_size=1, max_size=40))
def test_a_larger_number_draws_a_later_token(values):
    logits = torch.tensor(values).expand(64, -1)
    drawn = draws(logits, Sampling(), torch.linspace(0, 1 - 2**-24, 64, dtype=torch.float64))
    assert (drawn.diff() >= 0).all()


@given(st.integers(-(2**63), 2**63 - 1), st.lists(st.integers(0, 2**62), min_size=1, max_size=3), st.integers(-1, 9))
def test_uniforms_are_in_range(seed, keys, step):
    numbers = uniforms(seed, torch.tensor(keys), 2, torch.arange(5).expand(len(keys), 5), step)
    assert numbers.shape == (len(keys), 2, 5)
    assert ((numbers >= 0) & (numbers < 1)).all()


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
    return torch.stack(
        [uniforms(seed, torch.arange(8), 1, one.expand(8, 1), step)[:, 0, 0] for seed, step in calls]
    ).T.flatten()


def test_uniforms_are_all_different_for_different_names():
    numbers = uniforms(0, torch.arange(8), 4, torch.arange(32).expand(8, 32), 0)
    assert numbers.unique().numel() == numbers.numel()
