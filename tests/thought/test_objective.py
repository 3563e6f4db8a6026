"""The objective: its parts against their definitions, and a model's losses, down to texts too short for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.thought.head import IGNORED, ban
from pipeline.thought.layout import ahead, row_position_ids, text_position_ids
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import counts_of, lookahead_targets, rewarded_positions
from pipeline.thought.quiet_star import QuietStar
from tests.thought.tiny import GPT2, LLAMA, quiet_star, random_ids

SMALL = st.integers(1, 4)
TOKENS = st.integers(1, 9)
VOCABULARY = 7
DOUBLE = torch.float64


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
    found = QuietStar(None).advantages(rewards)
    assert (found >= 0).all()
    for b in range(texts):
        for i in range(positions):
            mean = sum(rewards[b, r, i].item() for r in range(rationales)) / rationales if rationales > 1 else 0.0
            for r in range(rationales):
                assert found[b, r, i].item() == pytest.approx(max(rewards[b, r, i].item() - mean, 0.0), abs=1e-12)


@given(st.integers(1, 12), st.integers(1, 12))
def test_all_positions_but_the_last_that_have_their_true_tokens_are_rewarded(tokens, lookahead):
    targets = lookahead_targets(random_ids(1, tokens), lookahead)[0]
    complete = [i for i in range(tokens) if (targets[i] != IGNORED).all()]
    assert complete[:-1] == list(range(rewarded_positions(tokens, lookahead)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@given(SMALL, TOKENS, SMALL, SMALL)
@settings(max_examples=30)
def test_losses_and_rewards_follow_from_the_cross_entropies(texts, tokens, lookahead, rationales):
    """The talk loss is a mean over k of means, each over the texts, thoughts and positions that have a target."""
    labels = some_labels(texts, tokens)
    model = quiet_star(LLAMA, lookahead=lookahead, rationales=rationales)
    losses = model(random_ids(texts, tokens), labels=labels).losses
    targets, base, talk = lookahead_targets(labels, lookahead), losses.base_nll, losses.talk_nll
    where = [(b, i, k) for b in range(texts) for i in range(tokens) for k in range(lookahead) if targets[b, i, k] >= 0]
    by_step = [
        mean([talk[b, r, i, k].item() for b, i, k in where if k == step for r in range(rationales)])
        for step in range(lookahead)
    ]
    assert losses.base.item() == pytest.approx(mean([base[b, i].item() for b, i, k in where if k == 0]), rel=1e-5)
    assert losses.talk.item() == pytest.approx(mean(by_step), rel=1e-5)
    for i in range(losses.reward.shape[2]):
        expected = sum(base[:, None, i + k] - talk[:, :, i, k] for k in range(lookahead))
        torch.testing.assert_close(losses.reward[:, :, i], expected)


def test_counts_are_of_real_targets():
    labels = torch.tensor([[0, 4, IGNORED, 2], [0, IGNORED, IGNORED, IGNORED]])
    assert [count.tolist() for count in counts_of(labels, 1)] == [[2], 4, 4, 3]


def test_labels_that_are_all_ignored_have_no_loss():
    losses = quiet_star(LLAMA)(random_ids(2, 8), labels=torch.full((2, 8), IGNORED)).losses
    assert losses.total == losses.base == losses.talk == losses.policy == 0


def log_probabilities(model: QuietStarForCausalLM, ids: Tensor, thoughts: Tensor) -> Tensor:
    """Of thoughts (B, R, N, K), differentiable."""
    thinker, positions = model.thinker, torch.arange(ids.shape[1])
    rows = thinker.embed_rows(ids, positions, thoughts, model.layout)
    rows = model.decoder.run_rows(rows, thinker.read(ids).view, positions)
    logits = ban(model.decoder.head.logits(rows[..., model.layout.sampling_outputs, :]), model.config.banned)
    log_probs = (logits / model.config.policy_temperature).log_softmax(-1)
    return log_probs.gather(-1, thoughts.unsqueeze(-1)).squeeze(-1)


@pytest.mark.parametrize("rationales", [1, 3])
def test_the_policy_gradient_is_minus_the_advantage(rationales):
    """What the policy's weight adds to every gradient is that of the log-probabilities times minus the advantage."""
    model, ids = quiet_star(GPT2, rationales=rationales).double(), random_ids(2, 8)
    thoughts, parameters = random_ids(2, rationales, 8, 3, seed=2), list(model.parameters())
    gradients = []
    for model.config.policy_weight in (0.0, 10.0):
        losses = model(ids, labels=ids, thought_ids=thoughts).losses
        gradients.append(torch.autograd.grad(losses.total, parameters))
    log_probs = log_probabilities(model, ids, thoughts)[:, :, : losses.advantage.shape[-1]]
    torch.testing.assert_close(losses.log_probs, log_probs.detach())
    policy = -(losses.advantage[..., None] * log_probs).sum() / log_probs.numel()
    assert losses.policy.item() == pytest.approx(policy.item(), rel=1e-12)
    expected = torch.autograd.grad(10.0 * policy, parameters, materialize_grads=True)
    assert sum(gradient.norm() > 0 for gradient in expected) > len(parameters) / 2
    for without, whole, gradient in zip(*gradients, expected, strict=True):
        # what is left of two gradients is as exact as they are
        assert (whole - without - gradient).norm() <= 1e-12 * (whole.norm() + without.norm())


def test_the_total_is_the_weighted_sum_of_its_parts():
    losses = quiet_star(LLAMA)(random_ids(2, 8), labels=some_labels(2, 8)).losses
    parts = [losses.base.item(), losses.talk.item(), losses.policy.item()]
    assert all(parts)
    assert losses.total.item() == pytest.approx(0.5 * (parts[0] + parts[1]) + 5.0 * parts[2], rel=1e-5)


@given(st.integers(1, 2), st.integers(1, 2), st.integers(1, 3), TOKENS)
@settings(max_examples=30)
def test_texts_of_every_length_train(texts, rationales, lookahead, tokens):
    """Down to one token, which has nothing to predict; up to A + 1 tokens have no position with a reward."""
    model = quiet_star(LLAMA, lookahead=lookahead, rationales=rationales)
    output = model(random_ids(texts, tokens), labels=some_labels(texts, tokens))
    output.loss.backward()
    losses, rewarded = output.losses, max(0, tokens - 1 - lookahead)
    assert all(value.isfinite().all() for name, value in vars(losses).items() if name != "parts")
    assert losses.base_nll.shape == (texts, tokens)
    assert losses.talk_nll.shape == (texts, rationales, tokens, lookahead)
    assert losses.reward.shape == losses.advantage.shape == (texts, rationales, rewarded)
    assert losses.log_probs.shape == (texts, rationales, rewarded, 3)
    assert rewarded or losses.policy.item() == 0.0
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (output.loss != 0)


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
