"""The losses' parts: each against its definition in method.md, and on texts too short for them."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.thought import objective
from pipeline.thought.layout import ahead, row_position_ids, text_position_ids
from pipeline.thought.objective import (
    IGNORED,
    advantages,
    combine,
    lookahead_targets,
    mean_of_targets,
    thought_log_probs,
    thought_rewards,
    token_nll,
)
from tests.thought.tiny import LLAMA, quiet_star, random_ids

SMALL = st.integers(1, 4)
TOKENS = st.integers(1, 9)
VOCABULARY, WIDTH = 7, 5


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def some_labels(texts: int, tokens: int) -> Tensor:
    """Random labels, about a third of them ignored."""
    return random_ids(texts, tokens, below=VOCABULARY).masked_fill(normal(texts, tokens, seed=3) < -0.5, IGNORED)


@given(SMALL, TOKENS, SMALL, st.sampled_from([(), (3,)]))
def test_ahead(texts, tokens, steps, rest):
    values = normal(texts, tokens, *rest)
    found = ahead(values, steps, fill=9.0)
    assert found.shape == (texts, tokens, steps, *rest)
    for i in range(tokens):
        for k in range(steps):
            expected = values[:, i + k] if i + k < tokens else torch.full_like(values[:, 0], 9.0)
            assert torch.equal(found[:, i, k], expected)


@given(SMALL, TOKENS, SMALL)
def test_lookahead_targets(texts, tokens, lookahead):
    labels = some_labels(texts, tokens)
    found = lookahead_targets(labels, lookahead)
    assert found.shape == (texts, tokens, lookahead)
    for i in range(tokens):
        for k in range(lookahead):
            inside = i + 1 + k < tokens
            expected = labels[:, i + 1 + k] if inside else torch.full((texts,), IGNORED)
            assert torch.equal(found[:, i, k], expected)


@given(SMALL, SMALL, TOKENS)
def test_advantages_are_the_better_thoughts_lead(texts, rationales, positions):
    rewards = normal(texts, rationales, positions)
    found = advantages(rewards)
    assert (found >= 0).all()
    for b in range(texts):
        for i in range(positions):
            mean = sum(rewards[b, r, i].item() for r in range(rationales)) / rationales if rationales > 1 else 0.0
            for r in range(rationales):
                assert found[b, r, i].item() == pytest.approx(max(rewards[b, r, i].item() - mean, 0.0), abs=1e-12)


@given(SMALL, SMALL, TOKENS, SMALL)
def test_rewards(texts, rationales, tokens, lookahead):
    base, talk = normal(texts, tokens).requires_grad_(), normal(texts, rationales, tokens, lookahead, seed=1)
    found = thought_rewards(base, talk)
    assert found.shape == (texts, rationales, max(0, tokens - 1 - lookahead))
    assert not found.requires_grad
    for i in range(found.shape[-1]):
        expected = sum(base[:, None, i + k] - talk[:, :, i, k] for k in range(lookahead))
        torch.testing.assert_close(found[:, :, i], expected.detach())


def nll_and_gradients(hidden: Tensor, head: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden, head = hidden.clone().requires_grad_(), head.clone().requires_grad_()
    nll = token_nll(lambda h: h @ head, hidden, targets, VOCABULARY)
    weights = normal(*targets.shape, seed=5)  # so that every token's gradient counts differently
    (nll * weights).sum().backward()
    return nll.detach(), hidden.grad, head.grad


@given(SMALL, TOKENS, st.integers(1, 80))
def test_nll_in_chunks_equals_nll_at_once(texts, tokens, chunk_logits):
    hidden, head = normal(texts, tokens, WIDTH), normal(WIDTH, VOCABULARY, seed=1)
    targets = some_labels(texts, tokens)
    whole = nll_and_gradients(hidden, head, targets)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(objective, "CHUNK_LOGITS", chunk_logits)
        chunked = nll_and_gradients(hidden, head, targets)
        with torch.no_grad():
            without_graph = token_nll(lambda h: h @ head, hidden, targets, VOCABULARY)
    for actual, expected in zip(chunked, whole, strict=True):
        torch.testing.assert_close(actual, expected)
    torch.testing.assert_close(without_graph, whole[0])


def test_nll_never_holds_more_logits_than_a_chunk(monkeypatch):
    monkeypatch.setattr(objective, "CHUNK_LOGITS", 3 * VOCABULARY)
    sizes = []

    def predict(hidden: Tensor) -> Tensor:
        sizes.append(len(hidden))
        return hidden @ head

    head = normal(WIDTH, VOCABULARY)
    token_nll(predict, normal(2, 5, WIDTH), random_ids(2, 5, below=VOCABULARY), VOCABULARY)
    assert sizes == [3, 3, 3, 1]


def test_ignored_targets_count_nothing():
    hidden, head = normal(2, 4, WIDTH), normal(WIDTH, VOCABULARY, seed=1)
    targets = random_ids(2, 4, below=VOCABULARY)
    targets[0, 1] = targets[1, 3] = IGNORED
    nll, gradient, _ = nll_and_gradients(hidden, head, targets)
    log_probs = (hidden @ head).log_softmax(-1)
    for b in range(2):
        for i in range(4):
            real = targets[b, i] != IGNORED
            assert nll[b, i].item() == pytest.approx(-log_probs[b, i, targets[b, i]].item() if real else 0.0)
            assert gradient[b, i].any() == real


def test_means_count_real_targets_only():
    nll = torch.tensor([[1.0, 0.0, 3.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[4, IGNORED, 2], [IGNORED, IGNORED, IGNORED]])
    assert mean_of_targets(nll, targets, dim=(0, 1)).item() == 2.0
    assert mean_of_targets(nll, targets, dim=(1,)).tolist() == [2.0, 0.0]


def test_log_probabilities_are_at_the_temperature_and_without_banned_ids():
    hidden, head, ids = normal(2, 3, WIDTH), normal(WIDTH, VOCABULARY, seed=1), random_ids(2, 3, below=5)
    found = thought_log_probs(lambda h: h @ head, hidden, ids, [5, 6], 3.0, VOCABULARY)
    expected = ((hidden @ head)[..., :5] / 3).log_softmax(-1).gather(-1, ids[..., None])[..., 0]
    torch.testing.assert_close(found, expected)


def test_the_policy_gradient_is_minus_the_advantage():
    base, talk = normal(2, 6), normal(2, 3, 6, 2, seed=1)
    log_probs = normal(2, 3, 3, 4, seed=2).requires_grad_()
    losses = combine(base, talk, log_probs, random_ids(2, 6), policy_weight=10.0)
    losses.total.backward()
    expected = -10.0 * losses.advantage[..., None].expand_as(log_probs) / log_probs.numel()
    torch.testing.assert_close(log_probs.grad, expected)
    assert losses.total.item() == pytest.approx((0.5 * (losses.base + losses.talk) + 10 * losses.policy).item())


@given(SMALL, SMALL, st.integers(1, 3), TOKENS)
def test_every_length_has_a_finite_loss(texts, rationales, lookahead, tokens):
    rewarded = max(0, tokens - 1 - lookahead)
    base, talk = normal(texts, tokens), normal(texts, rationales, tokens, lookahead, seed=1)
    log_probs = normal(texts, rationales, rewarded, 2, seed=2)
    losses = combine(base, talk, log_probs, some_labels(texts, tokens), policy_weight=1e6)
    assert losses.total.isfinite()
    assert losses.advantage.shape == (texts, rationales, rewarded)
    if not rewarded:
        assert losses.policy.item() == 0.0


@pytest.mark.parametrize("tokens", range(1, 7))
def test_short_texts_train(tokens):
    """Down to one token, which has nothing to predict; with A = 4, up to 5 tokens have no position with a reward."""
    model = quiet_star(LLAMA, lookahead=4)
    ids = random_ids(2, tokens)
    output = model(ids, labels=ids)
    output.loss.backward()
    rewarded = max(0, tokens - 5)
    assert output.losses.reward.shape == (2, 2, rewarded)
    assert output.losses.log_probs.shape == (2, 2, rewarded, 3)
    assert (output.losses.policy != 0) == (rewarded > 0)
    assert (output.loss != 0) == (tokens > 1)
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (tokens > 1)


def test_a_batch_of_ignored_labels_has_no_loss():
    model, ids = quiet_star(LLAMA), random_ids(2, 8)
    output = model(ids, labels=torch.full_like(ids, IGNORED))
    assert output.loss.item() == 0.0


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4))
def test_position_ids_count_real_tokens(texts):
    """Of texts with padding before and after."""
    width = max(sum(text) for text in texts)
    mask = torch.zeros(len(texts), width, dtype=torch.long)
    for b, (before, real, _) in enumerate(texts):
        mask[b, before : before + real] = 1
    found = text_position_ids(mask, mask)
    for b, (before, real, _) in enumerate(texts):
        assert found[b, before : before + real].tolist() == list(range(real))
    assert (found >= 0).all()


def test_thought_rows_stand_right_after_their_position():
    positions = text_position_ids(torch.tensor([[0, 1, 1], [1, 1, 1]]), torch.zeros(2, 3))
    rows = row_position_ids(positions, torch.tensor([1, 2]), first=2, count=3)
    assert rows.tolist() == [[[3, 4, 5], [4, 5, 6]], [[4, 5, 6], [5, 6, 7]]]
