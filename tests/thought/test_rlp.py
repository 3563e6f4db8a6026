"""RLP, a learned value and a cost of tokens: losses and gradients against loops over thoughts, in float64."""

from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import counts_of
from pipeline.thought.quiet_star import leave_one_out
from pipeline.thought.step import Engine
from tests.thought.slow_reference import SlowQuietStar, SlowResult, mean
from tests.thought.tiny import (
    ENDING,
    GPT2,
    TOKENS,
    base_model,
    given_thoughts,
    gradients,
    normal,
    quiet_star,
    texts,
    unpadded,
)

THINKS = torch.zeros(2, TOKENS, dtype=torch.bool).index_put(
    (torch.tensor([0, 0, 1]), torch.tensor([1, 4, 2])), torch.tensor(True)
)
CASES = {
    "every position": {},
    "some positions": {"thinks": THINKS},
    "a slice at a time": {"engine": Engine(positions=4)},
    "thoughts that end": {"settings": ENDING | {"token_cost": 0.3}},
    "lookahead 1": {"settings": {"lookahead": 1}},
}
all_cases = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
RATIONALES, CLIP = 3, 0.2


class SlowRlp(SlowQuietStar):
    """The mean over thoughts and tokens of -min(ratio A, clip(ratio) A), A from ``old`` or else from this pass."""

    old: SlowResult | None = None

    def add_policy(self, result: SlowResult, rewarded: int, rationales: int, last: int) -> None:
        terms, self.ratios = [], []
        for (b, r, i), worth in result.worth.items():
            others = [result.worth[b, other, i] for other in range(rationales) if other != r]
            result.advantage[b, r, i] = worth - sum(others) / len(others)
            advantage = (self.old or result).advantage[b, r, i]
            before = (self.old or result).log_probs[b, r, i]
            for j, log_prob in enumerate(result.log_probs[b, r, i]):
                if i <= last and log_prob.requires_grad:  # else it is after the thought's end
                    ratio = (log_prob - before[j].detach()).exp()
                    terms.append(-torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage))
                    self.ratios.append((ratio.item(), advantage))
        result.policy = torch.stack(terms).sum() / (rewarded * rationales * self.config.thought_tokens)


class SlowValue(SlowQuietStar):
    """REINFORCE on r - V(h) and, beside it, the mean of (r - V(h))^2, whose gradient ends at h."""

    def losses(self, texts: list[list[int]], *rest: object) -> SlowResult:
        self.texts = texts
        return super().losses(texts, *rest)

    def add_policy(self, result: SlowResult, rewarded: int, rationales: int, last: int) -> None:
        own, policy, self.errors = self.own, [], []
        for (b, r, i), worth in result.worth.items():
            if i > last or i + 1 == len(self.texts[b]):  # no true token follows
                continue
            state = self.states(self.embed(self.texts[b]))[i].detach()
            inner = torch.relu(own["objective.inner.weight"] @ state + own["objective.inner.bias"])
            error = worth - inner @ own["objective.outer"]
            self.errors.append(error.square())
            result.advantage[b, r, i] = error.item()
            policy += [-error.item() * log_prob for log_prob in result.log_probs[b, r, i]]
        result.policy = torch.stack(policy).sum() / (rewarded * rationales * self.config.thought_tokens)


@dataclass
class Problem:
    """A model in float64 and what it is asked, on two texts of which one is padded."""

    model: QuietStarForCausalLM
    thinks: Tensor | None
    engine: Engine
    thoughts: Tensor

    def learn(self, **options: object) -> object:
        ids, mask, labels = texts("right")
        given = {"thought_ids": self.thoughts, "thinks": self.thinks, "engine": self.engine}
        return self.model(ids, mask, labels=labels, **given | options)

    def slow(self, kind: type[SlowQuietStar]) -> SlowQuietStar:
        return kind(self.model.state_dict(), self.model.config)

    def expected(self, reference: SlowQuietStar) -> SlowResult:
        ids, mask, _ = texts("right")
        return reference.losses(unpadded(ids, mask), TOKENS, self.thoughts, self.thinks)


def problem(method: str, case: dict, **more: object) -> Problem:
    settings = {"rationales": RATIONALES, "policy_temperature": 0.7} | more | case.get("settings", {})
    model = quiet_star(GPT2, method=method, **settings)
    if method == "rlp":
        model.mixing_head.start_at(1.0)
    else:
        with torch.no_grad():
            for parameter in model.objective.parameters():
                parameter.normal_(std=0.3)
    thoughts = given_thoughts(settings["rationales"])
    return Problem(model.double(), case.get("thinks"), case.get("engine", Engine()), thoughts)


def same(found: dict[str, Tensor | None], expected: dict[str, Tensor | None], model: QuietStarForCausalLM) -> None:
    """All gradients at once, and each by itself; where there is none it is 0."""
    zeros = {name: torch.zeros_like(parameter) for name, parameter in model.named_parameters()}
    one, other = ({n: zeros[n] if some[n] is None else some[n] for n in zeros} for some in (found, expected))
    scale = torch.stack([gradient.norm() for gradient in other.values()]).norm()
    assert scale > 0
    for name in zeros:
        assert (one[name] - other[name]).norm() <= 1e-12 * scale, name


@all_cases
def test_rlp_is_the_clipped_ratio_and_nothing_else(case: dict):
    """In the first pass, whose ratio is 1, and after a change of the weights that the clip bites at."""
    some = problem("rlp", case)
    first, slow = some.learn(), some.slow(SlowRlp)
    expected = some.expected(slow)
    (some.model.config.policy_weight * expected.policy).backward()
    assert first.loss.item() == pytest.approx(5.0 * expected.policy.item(), rel=1e-12, abs=1e-12)
    assert first.losses.base.item() == pytest.approx(expected.base.item(), rel=1e-12)
    assert first.losses.talk.item() == pytest.approx(expected.talk.item(), rel=1e-12)
    same(gradients(some.model, first.loss), slow.gradients(), some.model)

    with torch.no_grad():
        for name, parameter in some.model.named_parameters():
            if not name.startswith("mixing_head"):
                parameter.add_(normal(*parameter.shape, seed=len(name)), alpha=0.02)
    old = replace(first.losses, total=first.loss.detach())
    second, slow = some.learn(old=old), some.slow(SlowRlp)
    slow.old = expected
    expected = some.expected(slow)
    (some.model.config.policy_weight * expected.policy).backward()
    assert any(ratio > 1 + CLIP and a > 0 for ratio, a in slow.ratios)
    assert any(ratio < 1 - CLIP and a < 0 for ratio, a in slow.ratios)
    assert any(ratio < 1 - CLIP and a > 0 for ratio, a in slow.ratios)
    assert second.loss.item() == pytest.approx(5.0 * expected.policy.item(), rel=1e-12)
    assert second.losses.policy.item() == pytest.approx(expected.policy.item(), rel=1e-12)
    assert torch.equal(second.losses.advantage, first.losses.advantage)
    same(gradients(some.model, second.loss), slow.gradients(), some.model)


@all_cases
@pytest.mark.parametrize("rationales", [1, RATIONALES])
def test_a_value_is_the_baseline_and_learns_by_squared_error(case: dict, rationales: int):
    some = problem("value", case, rationales=rationales)
    found, slow = some.learn(), some.slow(SlowValue)
    expected = some.expected(slow)
    total, value = expected.total, mean(slow.errors)
    (total + value).backward()
    assert found.loss.item() == pytest.approx((total + value).item(), rel=1e-12)
    assert found.losses.parts["value"].item() == pytest.approx(value.item(), rel=1e-12)
    for (b, r, i), advantage in expected.advantage.items():
        assert found.losses.advantage[b, r, i].item() == pytest.approx(advantage, abs=1e-12)
        assert found.losses.reward[b, r, i].item() == pytest.approx(expected.reward[b, r, i], abs=1e-12)
    same(gradients(some.model, found.loss), slow.gradients(), some.model)


def test_a_tokens_cost_is_in_advantages_and_not_in_rewards():
    """Of Quiet-STaR as of every other objective; thoughts of a fixed length cost nothing."""
    some = problem("quiet_star", CASES["thoughts that end"])
    found, slow = some.learn(), some.slow(SlowQuietStar)
    expected = some.expected(slow)
    expected.total.backward()
    assert found.loss.item() == pytest.approx(expected.total.item(), rel=1e-12)
    same(gradients(some.model, found.loss), slow.gradients(), some.model)
    assert expected.worth != expected.reward
    for key in expected.advantage.keys() & {(b, r, i) for b in (0, 1) for r in (0, 1, 2) for i in range(3)}:
        assert found.losses.reward[key].item() == pytest.approx(expected.reward[key], abs=1e-12)
        assert found.losses.advantage[key].item() == pytest.approx(expected.advantage[key], abs=1e-12)
    fixed = [problem("quiet_star", {"settings": {"token_cost": cost}}).learn().loss for cost in (0.0, 0.3)]
    assert torch.equal(*fixed)


@pytest.mark.parametrize("method", ["rlp", "value"])
def test_micro_batches_of_a_text_add_up(method: str):
    """Also in an inner epoch of rlp."""
    some, (ids, mask, labels) = problem(method, CASES["thoughts that end"]), texts("right")
    counts, found = counts_of(labels, 3), {}
    old = replace(some.learn().losses, total=torch.zeros(())) if method == "rlp" else None
    with torch.no_grad():
        some.model.start_embedding.add_(0.02)
    for b in (slice(0, 1), slice(1, 2)):
        own = old and replace(old, log_probs=old.log_probs[b], advantage=old.advantage[b])
        part = some.model(ids[b], mask[b], labels=labels[b], thought_ids=some.thoughts[b], counts=counts, old=own)
        for name, gradient in gradients(some.model, part.loss).items():
            found[name] = found.get(name, 0) + (0 if gradient is None else gradient)
    whole = gradients(some.model, some.learn(old=old).loss)
    same({name: g if isinstance(g, Tensor) else None for name, g in found.items()}, whole, some.model)


def test_with_one_update_rlp_is_reinforce_with_signed_advantages():
    """Whatever the clip: its gradients are to the last bit those of another, and Quiet-STaR's of the policy alone."""
    found = [gradients(p.model, p.learn().loss) for p in (problem("rlp", {}, ratio_clip=c) for c in (1e-9, 0.2, 9.0))]
    for name, gradient in found[0].items():
        assert gradient is None or all(torch.equal(gradient, other[name]) for other in found[1:])
    quiet = problem("quiet_star", {"engine": Engine(apart=True)}, advantage="signed")
    quiet.model.mixing_head.start_at(1.0)
    same(gradients(quiet.model, quiet.learn().losses.parts["policy"]), found[0], quiet.model)


def test_what_is_the_same_for_all_thoughts_of_a_position_cancels():
    """So does log p_ema(x), the paper's baseline: with it and without, advantages and so gradients are equal."""
    reward, ema = normal(2, 4, 5), normal(2, 1, 5, seed=1)
    torch.testing.assert_close(leave_one_out(reward + ema), leave_one_out(reward), rtol=1e-12, atol=1e-12)


def test_rlp_predicts_after_the_thought_alone_and_no_optimizer_changes_that(tmp_path: Path):
    model = QuietStarForCausalLM.from_base(base_model(GPT2), [3], method="rlp", thought_tokens=2, policy_weight=5.0)
    assert not any(parameter.requires_grad for parameter in model.mixing_head.parameters())
    ids, mask, labels = texts("right")
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.5)
    for _ in range(3):
        optimizer.zero_grad()
        model(ids, mask, labels=labels).loss.backward()
        optimizer.step()
    output = model(ids, mask, labels=labels)
    assert torch.equal(output.weight, (output.losses.talk_nll != 0).to(output.weight.dtype))
    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again(ids, mask).logits, model(ids, mask).logits)


def test_a_value_starts_at_0_and_is_saved_with_the_model(tmp_path: Path):
    model = QuietStarForCausalLM.from_base(base_model(GPT2), [3], method="value", rationales=1)
    ids, mask, labels = texts("right")
    losses = model(ids, mask, labels=labels).losses
    assert torch.equal(losses.advantage, losses.reward)
    with torch.no_grad():
        model.objective.outer.fill_(1.0)
    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path).objective
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.objective.parameters(), strict=True))
