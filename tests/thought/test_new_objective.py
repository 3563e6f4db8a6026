"""A new objective is one small class: its parts come apart, it may own parameters and have inner epochs."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from pipeline.thought.head import HeadLosses
from pipeline.thought.methods import METHODS
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import Counts, SliceLosses, SliceStates
from pipeline.thought.quiet_star import QuietStar
from pipeline.thought.step import Engine
from tests.thought.tiny import GPT2, LLAMA, error, quiet_star, random_ids

APART = Engine(apart=True)


class Valued(QuietStar):
    """Quiet-STaR whose baseline is a learned value of the text's state, and whose loss has a part of its own."""

    def __init__(self, config: object):
        super().__init__(config)
        self.value = nn.Linear(16, 1)

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        losses = super().forward(states, counts, head)
        value = self.value(states.text[states.at[..., 0]]).squeeze(-1)
        part = ((value - losses.reward.mean(1)) * states.rewarded).square().sum() / counts.thoughts
        return replace(losses, parts=losses.parts | {"value": part})


class Weightless:
    """A head whose cross-entropies count nothing: for rewards and log-probabilities that teach nothing themselves."""

    def __init__(self, head: HeadLosses):
        self._head = head

    def cross_entropy(self, part: str, hidden: Tensor, targets: Tensor, weights: Tensor, **options: object) -> tuple:
        return self._head.cross_entropy(part, hidden, targets, torch.zeros_like(weights), **options)

    def with_thoughts(self, part: str, *states: object) -> tuple:
        return self._head.with_thoughts(part, *states[:-1], torch.zeros_like(states[-1]))


class Clipped(QuietStar):
    """The policy alone, with the ratio to an earlier pass over the same thoughts, left out where it is above 1.2."""

    def language_modelling(self, hidden: Tensor, targets: Tensor, counts: Counts, head: HeadLosses) -> tuple:
        return super().language_modelling(hidden, targets, counts, Weightless(head))

    def forward(self, states: SliceStates, counts: Counts, head: HeadLosses) -> SliceLosses:
        quiet = super().forward(replace(states, sampled=False), counts, Weightless(head))
        old = quiet.log_probs if states.old_log_probs is None else states.old_log_probs
        ratio = (quiet.log_probs - old).exp()
        weights = ratio.where(ratio < 1.2, 0) * quiet.advantage.unsqueeze(-1) / counts.thoughts
        options = {"temperature": self.config.policy_temperature, "banned": self.config.banned_in_thoughts}
        loss, _ = head.cross_entropy("policy", states.thinking, states.ids, weights, **options)
        return replace(quiet, parts={"policy": loss})


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "valued", Valued)
    monkeypatch.setitem(METHODS, "clipped", Clipped)


def gradients(loss: Tensor, model: QuietStarForCausalLM, keep: bool = False) -> dict[str, Tensor]:
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)
    return {name: torch.zeros_like(p) if g is None else g for name, p, g in zip(names, parameters, found, strict=True)}


@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2, tied head"])
def test_every_part_of_the_loss_has_its_own_gradient(base: dict):
    """The policy's is what changes when its weight does, and all of them add up to the gradient of the total.

    Without ``apart`` only the total has a gradient; in slices there is no ``apart``.
    """
    model, ids = quiet_star(base).double(), random_ids(2, 9)
    thoughts = random_ids(2, 2, 9, 3, seed=2)
    whole = model(ids, labels=ids, thought_ids=thoughts)
    apart = model(ids, labels=ids, thought_ids=thoughts, engine=APART).losses
    assert list(apart.parts) == ["base", "talk", "policy"]
    assert not any(part.requires_grad for part in whole.losses.parts.values())
    for losses in (apart, whole.losses):
        torch.testing.assert_close(sum(losses.parts.values()), whole.loss)
    found = {name: gradients(part, model, keep=True) for name, part in apart.parts.items()}
    expected = gradients(whole.loss, model)
    for name, gradient in expected.items():
        assert error(sum(part[name] for part in found.values()), gradient) < 1e-6  # llama's norms are float32
    model.config.policy_weight = 0.0
    without = gradients(model(ids, labels=ids, thought_ids=thoughts).loss, model)
    for name, gradient in without.items():
        assert error(found["base"][name] + found["talk"][name], gradient) < 1e-6
    assert found["policy"]["start_embedding"].any()
    with pytest.raises(ValueError, match="only where all positions think at once"):
        model(ids, labels=ids, engine=Engine(positions=4, apart=True))


@pytest.mark.parametrize("positions", [None, 4])
def test_an_objective_may_own_parameters(positions: int | None, tmp_path):
    model, ids = quiet_star(LLAMA, method="valued"), random_ids(2, 9)
    output = model(ids, labels=ids, thought_ids=random_ids(2, 2, 9, 3, seed=2), engine=Engine(positions=positions))
    output.loss.backward()
    assert list(output.losses.parts) == ["base", "talk", "policy", "value"]
    assert model.objective.value.weight.grad.any()
    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.objective.value.weight, model.objective.value.weight)


def test_inner_epochs_learn_from_the_same_thoughts():
    """The first pass has ratio 1 and Quiet-STaR's policy gradient; after a step of the weights the ratio counts."""
    settings = {"policy_temperature": 1.0, "policy_weight": 6.0}  # R * K, which the mean is divided by
    model, quiet, ids = quiet_star(LLAMA, method="clipped", **settings), quiet_star(LLAMA, **settings), random_ids(2, 9)
    first = model(ids, labels=ids)
    thoughts = first.thoughts.ids
    again = model(ids, labels=ids, thought_ids=thoughts, old=first.losses)
    torch.testing.assert_close(again.loss, first.loss)
    expected = gradients(quiet(ids, labels=ids, thought_ids=thoughts, engine=APART).losses.parts["policy"], quiet)
    for name, gradient in gradients(again.loss, model).items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6)
    with torch.no_grad():
        model.start_embedding.add_(0.3 * torch.randn(16, generator=torch.Generator().manual_seed(0)))
    changed = model(ids, labels=ids, thought_ids=thoughts, old=first.losses).losses
    ratio = (changed.log_probs - first.losses.log_probs).exp()
    assert ratio.max() > 1.2 > 0.9 > ratio.min()
    weights = ratio.where(ratio < 1.2, 0) * changed.advantage.unsqueeze(-1) / (2 * 5)
    torch.testing.assert_close(changed.total.detach(), -(weights * changed.log_probs).sum())
