"""Thoughts distilled away: both forms against their formulas, and where each moves a student."""

import pytest
import torch
from torch import Tensor

from pipeline.thought import head as head_module
from pipeline.thought.distilled import FORMS, KL, REINFORCE
from pipeline.thought.head import HeadLosses
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.objective import counts_of
from pipeline.thought.step import DEFAULT_ENGINE, Engine
from tests.thought.slow_reference import SlowQuietStar, mean
from tests.thought.test_head import HEADS, VOCABULARY, WIDTH, some_head
from tests.thought.tiny import (
    GPT2,
    LLAMA,
    Largest,
    compare_gradients,
    given_thoughts,
    gradients,
    normal,
    quiet_star,
    random_ids,
    texts,
    unpadded,
)

DOUBLE, WEIGHT = torch.float64, 0.7
ALL_FORMS = pytest.mark.parametrize("form", FORMS)


def distilled(form: str, base: dict = GPT2, **settings: object) -> QuietStarForCausalLM:
    settings = {"method": "distilled", "distill_form": form, "distill_weight": WEIGHT} | settings
    return quiet_star(base, **settings).double()


class SlowDistilled(SlowQuietStar):
    """The term that comes on top of Quiet-STaR's loss, from whole distributions of one position at a time."""

    def distill(self, texts: list[list[int]], thoughts: Tensor, thinks: Tensor | None) -> Tensor:
        terms = []
        for b, text in enumerate(texts):
            states = self.states(self.embed(text))
            for i in range(len(text) - 1):
                if thinks is None or thinks[b, i]:
                    student = self.logits(states[i]).log_softmax(0)
                    rows = thoughts[b, :, i].tolist()
                    teachers = torch.stack([self.mixed_logits(text, i, row).log_softmax(0) for row in rows]).detach()
                    if self.config.distill_form == KL:
                        teacher = teachers.exp().mean(0)
                        terms.append((teacher * (teacher.log() - student)).sum())
                    else:
                        target = text[i + 1]
                        reward = -teachers[:, target].mean() + student[target].detach()
                        terms.append(-reward * student[target])
        return mean(terms)


@ALL_FORMS
@pytest.mark.parametrize("some", [False, True], ids=["every position", "some positions"])
@pytest.mark.parametrize("rationales", [1, 3])
def test_loss_and_gradients_are_those_of_whole_distributions(form: str, some: bool, rationales: int):
    """With padding; at once, in slices of positions, and in two micro-batches; the parts come apart."""
    model, (ids, mask, labels) = distilled(form), texts("right")
    thoughts = given_thoughts(rationales)
    thinks = normal(*ids.shape, seed=3) > 0 if some else None
    reference = SlowDistilled(model.state_dict(), model.config)
    slow = reference.losses(unpadded(ids, mask), ids.shape[1], thoughts, thinks).total
    distill = WEIGHT * reference.distill(unpadded(ids, mask), thoughts, thinks)
    (slow + distill).backward()

    def loss(texts: slice, engine: Engine = DEFAULT_ENGINE) -> tuple[Tensor, dict[str, Tensor]]:
        own = None if thinks is None else thinks[texts]
        settings = {"thinks": own, "counts": counts, "engine": engine, "thought_ids": thoughts[texts]}
        output = model(ids[texts], mask[texts], labels=labels[texts], **settings)
        return output.loss, output.losses.parts

    counts = counts_of(labels, model.lookahead, thinks)
    for engine in (DEFAULT_ENGINE, Engine(positions=4), Engine("blocked", 3), Engine(apart=True)):
        total, found = loss(slice(None), engine)
        assert total.item() == pytest.approx((slow + distill).item(), rel=1e-12)
        assert found["distill"].item() == pytest.approx(distill.item(), rel=1e-12)
        compare_gradients(gradients(model, total), reference.gradients(), 1e-12)
    (first, _), (second, _) = loss(slice(0, 1)), loss(slice(1, 2))
    compare_gradients(gradients(model, first + second), reference.gradients(), 1e-12)


@ALL_FORMS
def test_each_part_has_its_own_gradient(form: str):
    """Those of all parts add up to the total's; the teacher has none: without thoughts' parameters in it."""
    model, (ids, mask, labels) = distilled(form), texts("right")
    output = model(ids, mask, labels=labels, thought_ids=given_thoughts(), engine=Engine(apart=True))
    assert list(output.losses.parts) == ["base", "talk", "policy", "distill"]
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = {
        part: torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for part, loss in output.losses.parts.items()
    }
    total = gradients(model, model(ids, mask, labels=labels, thought_ids=given_thoughts()).loss)
    sums = dict(zip(names, map(sum, zip(*found.values(), strict=True)), strict=True))
    compare_gradients(sums, total, 1e-12)
    own = dict(zip(names, found["distill"], strict=True))
    assert not any(g.any() for name, g in own.items() if name.startswith(("mixing_head", "start_", "end_")))
    assert own["base.transformer.wte.weight"].any()


@HEADS
@pytest.mark.parametrize("frozen", [False, True])
def test_the_divergence_in_chunks_is_that_of_all_logits_at_once(options: dict, frozen: bool, monkeypatch):
    """In chunks of two positions; a weight of 0 leaves a position out."""
    head = some_head(**options)
    hidden, talk = normal(2, 5, WIDTH, seed=1).requires_grad_(), normal(2, 3, 5, WIDTH, seed=2)
    mixing, weights = normal(2, 3, 5, seed=3), normal(2, 5, seed=4)
    weights[0, 1] = 0.0
    logits = head.weight.detach(), None if head.bias is None else head.bias.detach()
    teacher = torch.lerp(hidden.detach().unsqueeze(1), talk, mixing.unsqueeze(-1))
    teacher = head_module.Head(*logits, head.softcap, head.scale).logits(teacher).softmax(-1).mean(1)
    student = head.logits(hidden).log_softmax(-1)
    expected = (teacher * (teacher.log() - student)).sum(-1)
    head.weight.requires_grad_(not frozen)
    leaves = [leaf for leaf in (hidden, head.weight, head.bias) if leaf is not None and leaf.requires_grad]
    wanted = torch.autograd.grad((expected * weights).sum(), leaves)
    monkeypatch.setitem(head_module.CHUNK_LOGITS, "cpu", 8 * VOCABULARY)
    losses = HeadLosses(head)
    with Largest(VOCABULARY) as largest:
        loss, found = losses.divergence("distill", hidden, talk, mixing, weights)
    assert largest.elements <= 8 * VOCABULARY
    assert found[0, 1] == 0
    torch.testing.assert_close(found, expected.detach().masked_fill(weights == 0, 0.0), rtol=0, atol=1e-12)
    for one, other in zip(torch.autograd.grad(losses.attach(loss, {})[0], leaves), wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form, weight, nearer", [(KL, 1.0, True), (REINFORCE, 1.0, False), (REINFORCE, -1.0, True)])
def test_a_step_moves_a_student_to_its_teacher_but_for_reinforce_as_stated(form: str, weight: float, nearer: bool):
    """By a step on that term alone, the squared difference of the cross-entropies shrinks or grows."""
    model, ids = distilled(form, LLAMA, distill_weight=weight), random_ids(4, 9)
    thoughts = random_ids(4, 2, 9, 3, seed=2)
    gap, before = [], None
    for _ in range(2):
        losses = model(ids, labels=ids, thought_ids=thoughts, engine=Engine(apart=True)).losses
        teacher, student = losses.talk_nll[..., 0].mean(1), losses.base_nll
        before = teacher if before is None else before  # a constant, as in the step
        gap.append((student - before)[:, :-1].square().mean().item())
        slopes = torch.autograd.grad(losses.parts["distill"], list(model.parameters()), allow_unused=True)
        with torch.no_grad():
            for parameter, slope in zip(model.parameters(), slopes, strict=True):
                if slope is not None:
                    parameter -= 1e-3 * slope
    assert (gap[1] < gap[0]) == nearer


def test_on_its_own_tokens_reinforce_as_stated_climbs_the_divergence():
    """The expected gradient over x ~ student is minus that of KL(student || teacher), to the last digits."""
    logits, teacher = normal(9, seed=1).requires_grad_(), normal(9, seed=2).log_softmax(0)
    student = logits.log_softmax(0)
    reward = (student - teacher).detach()  # CE_teacher - CE_student of each token
    stated = torch.autograd.grad((student.exp().detach() * -reward * student).sum(), logits, retain_graph=True)[0]
    divergence = torch.autograd.grad((student.exp() * (student - teacher)).sum(), logits)[0]
    torch.testing.assert_close(stated, -divergence, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", ["distilled", "quiet_star"])
def test_a_form_that_there_is_not_is_refused_whatever_is_learned(method: str):
    for name, value in (("distill_form", "released"), ("distill_weight", "much")):
        with pytest.raises(ValueError, match=f"{name} is '{value}', but must be"):
            QuietStarConfig(method=method, **{name: value})
