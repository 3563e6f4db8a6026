"""The arms in which a cause is removed, and the two kinds of advantage."""

import pytest
import torch
from torch import Tensor

from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import IGNORED
from tests.thought.tiny import LLAMA, base_model, compare_gradients, given_thoughts, gradients, quiet_star, texts


def step(method: str = "quiet_star", **settings: object) -> tuple[QuietStarForCausalLM, Tensor, QuietStarOutput]:
    model, (ids, mask, labels) = quiet_star(LLAMA, method=method, rationales=3, **settings), texts("right")
    return model, labels, model(ids, mask, labels=labels, thought_ids=given_thoughts(3))


def test_signed_advantages_leave_one_out():
    """Each is the reward less the mean of the other thoughts' rewards; positive ones are cut at 0 and not rescaled."""
    _, _, output = step(advantage="signed")
    reward = output.losses.reward
    for r in range(3):
        others = [i for i in range(3) if i != r]
        torch.testing.assert_close(output.losses.advantage[:, r], reward[:, r] - reward[:, others].mean(1))
    _, _, positive = step()
    torch.testing.assert_close(positive.losses.advantage, (output.losses.advantage * 2 / 3).clamp(min=0))
    with pytest.raises(ValueError, match="must be one of positive, signed"):
        quiet_star(LLAMA, advantage="both")


def test_no_policy_is_quiet_star_without_its_weight():
    model, _, output = step("no_policy")
    other, _, expected = step(policy_weight=0.0)
    assert output.losses.policy != 0
    compare_gradients(gradients(model, output.loss), gradients(other, expected.loss), 1e-6)


def test_shuffled_rewards_are_the_same_advantages_elsewhere():
    """Real positions exchange those of all their thoughts; padding takes no part; a rerun draws the same."""
    (_, labels, own), (_, _, shuffled), (_, _, again) = step(), step("shuffled_reward"), step("shuffled_reward")
    one, other = own.losses.advantage.transpose(1, 2), shuffled.losses.advantage.transpose(1, 2)
    assert torch.equal(shuffled.losses.advantage, again.losses.advantage)
    real = labels[:, 1 : one.shape[1] + 1] != IGNORED
    rows = [sorted(map(tuple, some[real].tolist())) for some in (one, other)]
    assert rows[0] == rows[1] and not torch.equal(one, other)
    assert torch.equal(one[~real], other[~real])
    torch.testing.assert_close(own.losses.reward, shuffled.losses.reward)


@torch.no_grad()
def test_untrained_thoughts_are_trusted_wholly():
    """What it predicts is what the base model predicts after the thought."""
    (ids, mask, _), found = texts("right"), {}
    for method in ("untrained", "before"):
        model = QuietStarForCausalLM.from_base(base_model(LLAMA), [3], method=method)
        found[method] = model(ids, mask)
    assert found["untrained"].weight.allclose(torch.tensor(1.0), atol=1e-6)
    assert torch.equal(found["before"].logits, found["untrained"].base_logits)
    assert not torch.allclose(found["untrained"].logits, found["untrained"].base_logits)
