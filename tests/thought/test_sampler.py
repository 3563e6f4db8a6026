"""Draws: what they depend on, what they may be, and how they are distributed."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import BANNED_LOGIT, Sampling, at_least_float32, ban, draw, uniforms
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
                so_far.append(int(draw(logits[None], 1.0, chance[None])))
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
    unbanned = model.decoder.predict(model.decoder.read(ids)[0]).argmax(-1)
    assert torch.isin(unbanned, torch.tensor(banned)).any()
    drawn = thoughts(model, ids, sampling=Sampling(temperature, seed=1))
    assert torch.isin(drawn, torch.tensor(allowed)).all()


def test_ban_leaves_the_other_logits():
    logits = torch.randn(2, 5)
    banned = ban(logits, [1, 4])
    assert (banned[:, [1, 4]] == BANNED_LOGIT).all()
    assert torch.equal(banned[:, [0, 2, 3]], logits[:, [0, 2, 3]])
    assert torch.equal(ban(logits, []), logits)


@pytest.mark.parametrize(
    ("given", "expected"),
    [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)],
)
def test_logits_are_at_least_float32(given, expected):
    logits = torch.zeros(3, dtype=given)
    assert at_least_float32(logits).dtype == expected
    assert ban(logits, []).dtype == expected


def chi_square(counts: Tensor, probabilities: Tensor) -> float:
    expected = probabilities * counts.sum()
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.0])
def test_draws_have_the_softmax_distribution(temperature):
    count = 40_000
    logits = torch.tensor([2.0, -1.0, 0.0, 1.0, 0.5, -2.0, 1.5, 0.2])
    chance = uniforms(1, torch.arange(count), 1, torch.zeros(count, 1, dtype=torch.long), 0).flatten()
    drawn = draw(logits.expand(count, -1), temperature, chance)
    counts = drawn.bincount(minlength=len(logits)).double()
    # the 99.9 % quantile of chi-square with 7 degrees of freedom
    assert chi_square(counts, (logits.double() / temperature).softmax(0)) < 24.3


POSSIBLE = st.floats(-80, 80, width=32)
LOGITS = st.lists(st.one_of(st.just(BANNED_LOGIT), st.just(float("-inf")), POSSIBLE), min_size=1, max_size=40).filter(
    lambda values: max(values) > BANNED_LOGIT
)
CHANCE = st.one_of(st.just(0.0), st.just(1 - 2**-24), st.integers(0, 2**24 - 1).map(lambda i: i / 2**24))


@given(LOGITS, CHANCE, st.sampled_from([0.0, 0.3, 1.0, 3.0]))
def test_a_token_of_no_probability_is_never_drawn(values, chance, temperature):
    logits = torch.tensor([values])
    drawn = draw(logits, temperature, torch.tensor([chance], dtype=torch.float64)).item()
    assert 0 <= drawn < len(values)
    assert logits.div(temperature or 1.0).softmax(-1)[0, drawn] > 0


@given(st.lists(POSSIBLE, min_size=1, max_size=40))
def test_a_larger_number_draws_a_later_token(values):
    logits = torch.tensor(values).expand(64, -1)
    drawn = draw(logits, 1.0, torch.linspace(0, 1 - 2**-24, 64, dtype=torch.float64))
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
    counts = (numbers * 20).long().bincount(minlength=20).double()
    assert chi_square(counts, torch.full((20,), 1 / 20)) < 43.8  # the 99.9 % quantile, 19 degrees of freedom
    cells = (numbers[:-1] * 5).long() * 5 + (numbers[1:] * 5).long()
    assert chi_square(cells.bincount(minlength=25).double(), torch.full((25,), 1 / 25)) < 51.2


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
