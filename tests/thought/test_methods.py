"""The other methods on the same engine: pauses, no thoughts, arms in which a cause is removed, kinds of advantage."""

import pytest
import torch
from torch import Tensor

from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import IGNORED
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import DEFAULT_ENGINE, Engine
from pipeline.thought.thinking import Thinker
from tests.thought.slow_reference import eager_model
from tests.thought.tiny import (
    ALL_METHODS,
    ARCHITECTURES,
    GPT2,
    LLAMA,
    TOKENS,
    base_model,
    compare_gradients,
    error,
    given_thoughts,
    gradients,
    quiet_star,
    random_ids,
    slow,
    texts,
    unpadded,
)


@ALL_METHODS
@torch.no_grad()
def test_some_positions_are_predicted_as_among_all(method):
    model = quiet_star(LLAMA, method=method).eval()
    (ids, mask, _), some = texts("left"), torch.tensor([TOKENS - 1, 5])
    whole, part = model(ids, mask), model(ids, mask, positions=some)
    for name in ("logits", "base_logits", "weight"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, some])


@pytest.mark.parametrize("method", [PAUSE, NO_THOUGHT])
def test_nothing_is_sampled(method, monkeypatch):
    """Neither when training nor when predicting, with gradients or without; so a seed makes no difference."""
    monkeypatch.setattr(Thinker, "sample", None)
    with pytest.raises(TypeError, match="not callable"):
        quiet_star(LLAMA)(random_ids(2, 6), labels=random_ids(2, 6))
    model, (ids, mask, labels) = quiet_star(LLAMA, method=method), texts("right")
    found = []
    for seed in (1, 2):
        options = {"sampling": Sampling(1.0, seed), "text_keys": torch.arange(2) + seed}
        step, prediction = model(ids, mask, labels=labels, **options), model(ids, mask, **options)
        with torch.no_grad():
            torch.testing.assert_close(model(ids, mask, **options).logits, prediction.logits)
        found.append([step.loss, prediction.logits, *gradients(model, step.loss).values()])
        assert step.thoughts is None and prediction.thoughts is None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("name", [*ARCHITECTURES, "gpt2 in float64"])
def test_without_thoughts_the_loss_is_the_base_models_own(name):
    """And every gradient; transformers' own forward, attention and cross-entropy. Some embeddings are untied."""
    base = ARCHITECTURES.get(name, GPT2)
    model = quiet_star({**base, "tie_word_embeddings": name not in ("qwen2", "gemma2", "gpt2")}, method=NO_THOUGHT)
    model, tolerance = (model.double(), 1e-12) if "float64" in name else (model, 1e-5)
    ids, mask, labels = texts("right")
    plain = eager_model(model.config.base, model.dtype)
    plain.load_state_dict(model.base.state_dict())
    logits = plain(input_ids=ids, attention_mask=mask, use_cache=False).logits
    nll = torch.nn.functional.cross_entropy(logits[:, :-1].mT, labels[:, 1:], reduction="none")  # 0 where ignored
    expected = gradients(plain, nll.sum() / (labels[:, 1:] != IGNORED).sum())
    for engine in (DEFAULT_ENGINE, Engine("blocked", 3)):
        output = model(ids, mask, labels=labels, engine=engine)
        losses = output.losses
        assert output.loss.item() == losses.total.item() == pytest.approx(losses.base.item(), rel=tolerance)
        assert losses.base.item() == losses.talk.item() and losses.policy == 0
        assert error(losses.base_nll[:, :-1], nll.detach()) < tolerance and not losses.base_nll[:, -1].any()
        found = gradients(model, output.loss)
        compare_gradients({name.removeprefix("base."): g for name, g in found.items()}, expected, tolerance)
    real = mask.bool()
    assert error(model(ids, mask).logits[real], logits[real]) < tolerance


MIXING = [f"mixing_head.{i}.{n}" for i in "02" for n in ("weight", "bias")] + ["mixing_head.4.weight"]
OWN = {QUIET_STAR: {"start_embedding", "end_embedding", *MIXING}, NO_THOUGHT: set()}
OWN[PAUSE] = OWN[QUIET_STAR] | {"pause_embeddings"}


@ALL_METHODS
def test_a_model_has_what_its_method_needs_and_no_more(method):
    model = quiet_star(LLAMA, method=method)
    base = {f"base.{name}" for name in base_model(LLAMA).state_dict()}
    assert set(model.state_dict()) == base | OWN[method]
    assert {name for name, _ in model.named_parameters()} <= set(model.state_dict())
    ids = random_ids(2, 6)
    reached = gradients(model, model(ids, labels=ids).loss)
    assert all(gradient is not None and gradient.any() for gradient in reached.values())


@pytest.mark.parametrize("method", ["Pause", None])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match="method is .* must be one of quiet_star, no_policy"):
        QuietStarConfig(base=LLAMA, method=method)


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


@pytest.mark.parametrize("positions", [1, 2, 3])
def test_of_few_shuffled_rewards_none_keeps_its_own(positions: int):
    """Of one alone there is no other: it gets none."""
    thinks = torch.zeros(2, TOKENS, dtype=torch.bool)
    thinks[0, 1 : 1 + positions] = True
    found = []
    for method in ("quiet_star", "shuffled_reward"):
        model, (ids, mask, labels) = quiet_star(LLAMA, method=method, rationales=3, advantage="signed"), texts("right")
        output = model(ids, mask, labels=labels, thought_ids=given_thoughts(3), thinks=thinks)
        found.append(output.losses.advantage[0, :, 1 : 1 + positions].T)
    own, shuffled = found
    assert (own != 0).all() and not (own == shuffled).any()
    torch.testing.assert_close(shuffled.sort(0).values, own.sort(0).values * (positions > 1))


def test_talk_is_the_mean_over_the_distances_that_have_a_target():
    """One position thinks, and two tokens follow it in its text."""
    thinks = torch.zeros(2, TOKENS, dtype=torch.bool)
    (ids, mask, labels), found = texts("right"), {}
    last = int(mask[0].sum()) - 1
    thinks[0, last - 2] = True
    for lookahead in (2, 4):
        model = quiet_star(LLAMA, lookahead=lookahead)
        output = model(ids, mask, labels=labels, thought_ids=given_thoughts(2), thinks=thinks)
        found[lookahead] = output.losses.talk
        talk = output.losses.talk_nll[0, :, last - 2, :2]
        torch.testing.assert_close(output.losses.talk, talk.mean())
    torch.testing.assert_close(found[2], found[4])


def test_texts_in_which_nothing_thinks_give_no_thoughts():
    model = quiet_star(LLAMA, method="trained_swapped")
    ids = torch.arange(1, 4 * 2 * 3 + 1).view(4, 1, 2, 3)
    real = torch.tensor([[True, False], [False, False], [True, True], [False, False]])
    read = model.objective.exchange(ids, real)
    assert torch.equal(read[0, :, :1], ids[2, :, :1]) and torch.equal(read[2], ids[0, :, :1].expand(1, 2, 3))
    alone = model.objective.exchange(ids[1:3], real[1:3])
    assert torch.equal(alone[1], ids[2].roll(1, 1))


@pytest.mark.parametrize(
    "thinks", [None, torch.tensor([[1, 0, 1, 1, 0, 1, 0, 1, 0], [0, 1, 0, 0, 1, 0, 1, 0, 0]]).bool()]
)
def test_trained_swapped_reads_the_thoughts_of_the_text_before(thinks: Tensor | None):
    """The loss and gradients of the slow reference with them: the k-th place of a text has the k-th thought of another.

    A text with more places than its donor takes the donor's last thought. The rewards teach nothing.
    """
    model, (ids, mask, labels) = quiet_star(LLAMA, method="trained_swapped"), texts("right")
    output = model(ids, mask, labels=labels, sampling=Sampling(1.0, 7), thinks=thinks)
    sampled, foreign = output.thoughts.ids, torch.zeros(2, 2, TOKENS, 3, dtype=torch.long)
    assert torch.equal(
        quiet_star(LLAMA)(ids, mask, labels=labels, sampling=Sampling(1.0, 7), thinks=thinks).thoughts.ids, sampled
    )
    places = [where.nonzero().flatten().tolist() for where in output.losses.thinks]
    for b, here in enumerate(places):
        for k, position in enumerate(here):
            donors = places[1 - b]
            foreign[b, :, position] = sampled[1 - b, :, donors[min(k, len(donors) - 1)]]
    reference = slow(model)
    expected = reference.losses(unpadded(ids, mask), TOKENS, foreign, thinks)
    total = 0.5 * expected.base + 0.5 * expected.talk
    total.backward()
    assert output.losses.talk.item() == pytest.approx(expected.talk.item(), rel=1e-5)
    compare_gradients(gradients(model, output.loss), reference.gradients(), 1e-4)


def test_slots_between_which_nothing_thinks_are_not_counted():
    """The n-th thought for the n-th, though the donor has an empty slot before it."""
    model, ids = quiet_star(LLAMA, method="trained_swapped"), torch.arange(1, 2 * 4 + 1).view(2, 1, 4, 1)
    real = torch.tensor([[True, True, True, True], [True, False, True, True]])
    read = model.objective.exchange(ids, real)[:, 0, :, 0]
    assert read[0].tolist() == [5, 7, 8, 8] and read[1, real[1]].tolist() == [1, 2, 3]


@pytest.mark.parametrize("method", ["quiet_star", "no_thought"])
def test_a_text_padded_on_the_left_learns_what_it_does_alone(method: str):
    """No padding thinks, or is learned to be followed by the text."""
    model, ids = quiet_star(LLAMA, method=method, lookahead=3), random_ids(1, 8)
    padded, mask = torch.cat([ids[:, :3], ids], 1), torch.tensor([[0] * 3 + [1] * 8])
    alone = model(ids, torch.ones_like(ids), labels=ids, sampling=Sampling(1.0, 7))
    output = model(padded, mask, labels=padded.masked_fill(mask == 0, IGNORED), sampling=Sampling(1.0, 7))
    for name in ("total", "base", "talk", "policy"):
        found, expected = (getattr(losses, name) for losses in (output.losses, alone.losses))
        assert (found is None) == (expected is None)
        if found is not None:
            torch.testing.assert_close(found, expected)
    if method == "quiet_star":
        assert output.losses.thinks.sum() == alone.losses.thinks.sum()
        assert torch.equal(output.thoughts.ids[:, :, 3:], alone.thoughts.ids)


def test_a_text_alone_reads_its_own_other_thoughts():
    model, ids = quiet_star(LLAMA, method="trained_swapped"), random_ids(1, 9)
    own = torch.arange(9 * 3).view(1, 1, 9, 3)
    swapped = model.objective.exchange(own, torch.ones(1, 9).bool())
    assert (swapped != own).any(-1).all() and torch.equal(swapped.flatten().sort().values, own.flatten())
    assert model(ids, labels=ids).loss.isfinite()


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
