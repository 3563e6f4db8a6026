"""The objective: its parts against their definitions, and a model's losses, down to texts too short for them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.thought.head import IGNORED
from pipeline.thought.objective import counts_of, lookahead_targets
from tests.thought.tiny import LLAMA, quiet_star, random_ids, some_ignored

SMALL = st.integers(1, 4)
TOKENS = st.integers(1, 9)


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


@given(SMALL, TOKENS, SMALL, SMALL)
@settings(max_examples=40)
def test_texts_of_every_length_train_on_what_follows_from_the_cross_entropies(texts, tokens, lookahead, rationales):
    """Down to one token, which has nothing to predict; up to A + 1 tokens have no position with a reward.

    The talk loss is a mean over k of means, each over the texts, thoughts and positions that have a target; a k that no
    text has one for does not count.
    """
    labels = some_ignored(texts, tokens)
    model = quiet_star(LLAMA, lookahead=lookahead, rationales=rationales)
    output = model(random_ids(texts, tokens), labels=labels)
    losses, rewarded = output.losses, max(0, tokens - 1 - lookahead)
    targets, base, talk, reward = lookahead_targets(labels, lookahead), losses.base_nll, losses.talk_nll, losses.reward
    assert base.shape == (texts, tokens)
    assert talk.shape == (texts, rationales, tokens, lookahead)
    assert reward.shape == losses.advantage.shape == (texts, rationales, rewarded)
    assert losses.log_probs.shape == (texts, rationales, rewarded, 3)
    assert all(value.isfinite().all() for name, value in vars(losses).items() if name != "parts")

    where = [(b, i, k) for b in range(texts) for i in range(tokens) for k in range(lookahead) if targets[b, i, k] >= 0]
    by_step = [
        mean([talk[b, r, i, k].item() for b, i, k in where if k == step for r in range(rationales)])
        for step in sorted({k for _, _, k in where})
    ]
    assert losses.base.item() == pytest.approx(mean([base[b, i].item() for b, i, k in where if k == 0]), rel=1e-5)
    assert losses.talk.item() == pytest.approx(mean(by_step), rel=1e-5)
    for i in range(rewarded):
        torch.testing.assert_close(
            reward[:, :, i], sum(base[:, None, i + k] - talk[:, :, i, k] for k in range(lookahead))
        )
    others = reward.mean(1, keepdim=True) if rationales > 1 else 0.0
    torch.testing.assert_close(losses.advantage, (reward - others).clamp(min=0))
    assert rewarded or losses.policy == 0

    output.loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.any() for gradient in gradients) == (output.loss != 0)


def test_counts_are_of_real_targets():
    labels = torch.tensor([[0, 4, IGNORED, 2], [0, IGNORED, IGNORED, IGNORED]])
    assert [count.tolist() for count in counts_of(labels, 1)] == [2, [2], 4, 2, 1]
