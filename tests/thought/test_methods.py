"""The other methods on the same engine: pauses that nobody samples, and no thoughts at all."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.thought import model as model_module
from pipeline.thought.decoder import Decoder
from pipeline.thought.generation import GREEDY, SAMPLES_APART, TEXT_STEP
from pipeline.thought.methods import METHODS, NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.objective import IGNORED, Losses
from pipeline.thought.sampler import Sampling, ban, draw, uniforms
from pipeline.thought.step import DEFAULT_ENGINE, Engine
from tests.thought.slow_reference import SlowPause, SlowResult, eager_model
from tests.thought.tiny import (
    ARCHITECTURES,
    END,
    GEMMA2,
    GPT2,
    LLAMA,
    MISTRAL_WINDOW,
    START,
    base_model,
    error,
    quiet_star,
    random_ids,
    slow,
)

LENGTHS = (9, 6, 8)  # of texts that are padded on either side
TOKENS = max(LENGTHS)
ENGINES = [Engine(attention, positions) for attention in ("reference", "blocked") for positions in (None, 1, 3, 100)]
NEW = 6
EXACT = {"float64": 1e-12, "float32": 1e-5}

ALL_METHODS = pytest.mark.parametrize("method", METHODS)
FAMILIES = pytest.mark.parametrize(
    "base", [LLAMA, MISTRAL_WINDOW, GEMMA2, GPT2], ids=["llama", "mistral, window", "gemma2", "gpt2"]
)
SIDES = pytest.mark.parametrize("side", ["left", "right"])


def padded(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids, mask and labels of three texts, with random ids where nobody should look."""
    ids, places = random_ids(len(LENGTHS), TOKENS), torch.arange(TOKENS)
    mask = (places if side == "right" else TOKENS - 1 - places) < torch.tensor(LENGTHS)[:, None]
    return ids, mask.long(), ids.masked_fill(~mask, IGNORED)


def unpadded(ids: Tensor, mask: Tensor) -> list[list[int]]:
    return [row[real.bool()].tolist() for row, real in zip(ids, mask, strict=True)]


def gradients(model: torch.nn.Module, loss: Tensor) -> dict[str, Tensor | None]:
    model.zero_grad()
    loss.backward()
    return {name: None if p.grad is None else p.grad.clone() for name, p in model.named_parameters()}


def compare_gradients(actual: dict[str, Tensor | None], expected: dict[str, Tensor], tolerance: float) -> None:
    assert actual.keys() == expected.keys()
    scale = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        assert gradient.norm() > 0, name
        # a gradient that cancels to nearly nothing is as exact as its parts
        assert (actual[name] - gradient).norm() <= tolerance * (gradient.norm() + 1e-2 * scale), name


# Pauses equal pauses run alone


@dataclass(frozen=True)
class Expected:
    result: SlowResult
    gradients: dict[str, Tensor]


def expected_of(model: QuietStarForCausalLM) -> Expected:
    """What the slow reference says of the texts that `padded` pads on the right."""
    ids, mask, _ = padded("right")
    reference = slow(model)
    assert isinstance(reference, SlowPause)
    result = reference.pause_losses(unpadded(ids, mask), TOKENS)
    result.total.backward()
    return Expected(result, reference.gradients())


def check_step(model: QuietStarForCausalLM, engine: Engine, expected: Expected, tolerance: float) -> None:
    ids, mask, labels = padded("right")
    output = model(ids, mask, labels=labels, engine=engine)
    for name in ("total", "base", "talk"):
        wanted = getattr(expected.result, name).item()
        assert getattr(output.losses, name).item() == pytest.approx(wanted, rel=tolerance), name
    assert output.losses.policy == 0 and not output.losses.log_probs.any() and output.thoughts is None
    assert output.weight.shape == output.losses.talk_nll.shape == (len(LENGTHS), 1, TOKENS, model.config.lookahead)
    check_rewards(output.losses, expected.result, tolerance)
    compare_gradients(gradients(model, output.loss), expected.gradients, tolerance)


def check_rewards(losses: Losses, expected: SlowResult, tolerance: float) -> None:
    """Rewards and advantages at every position that has a reward and is not padding; one row a position."""
    rewarded = losses.reward.shape[-1]
    keys = [key for key in expected.reward if key[2] < rewarded]
    assert len(keys) == sum(min(length, rewarded) for length in LENGTHS)
    index = tuple(torch.tensor(keys).T)
    for name in ("reward", "advantage"):
        wanted = losses.reward.new_tensor([getattr(expected, name)[key] for key in keys])
        assert error(getattr(losses, name)[index], wanted) < tolerance, name


@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_parallel_pauses_equal_pauses_alone(base):
    model = quiet_star(base, method=PAUSE)
    check_step(model, DEFAULT_ENGINE, expected_of(model), EXACT["float32"])


@pytest.mark.parametrize("lookahead", [1, 3])
def test_every_engine_equals_pauses_alone_in_double_precision(lookahead):
    """GPT-2, whose own attention and norms do not round to float32 on the way."""
    model = quiet_star(GPT2, method=PAUSE, lookahead=lookahead).double()
    expected = expected_of(model)
    for engine in ENGINES:
        check_step(model, engine, expected, EXACT["float64"])


@FAMILIES
def test_one_pause_and_one_true_token(base):
    model = quiet_star(base, method=PAUSE, thought_tokens=1, lookahead=1)
    check_step(model, Engine("blocked", 4), expected_of(model), EXACT["float32"])


@SIDES
@FAMILIES
@torch.no_grad()
def test_pauses_predict_what_they_predict_alone(base, side):
    """Mixed and base logits, and so the mixing weight, of every real token of padded texts."""
    model = quiet_star(base, method=PAUSE).eval()
    ids, mask, _ = padded(side)
    output, reference = model(ids, mask), slow(model)
    assert output.thoughts is None
    texts = unpadded(ids, mask)
    expected = [reference.mixed_logits(text, i, []) for text in texts for i in range(len(text))]
    base_logits = [reference.logits(reference.states(reference.embed(text))) for text in texts]
    real = mask.bool()
    assert error(output.logits[real], torch.stack(expected)) < EXACT["float32"]
    assert error(output.base_logits[real], torch.cat(base_logits)) < EXACT["float32"]
    assert error(output.weight[real], mixing_weights(reference, texts)) < EXACT["float32"]
    assert error(output.logits[real], output.base_logits[real]) > 0.1  # or the mixture would not show


def mixing_weights(reference: SlowPause, texts: list[list[int]]) -> Tensor:
    """How far from the base state to the state after the pauses the mixture lies, at each token."""
    weights = []
    for text in texts:
        for i in range(len(text)):
            base = reference.states(reference.embed(text))[i]
            talk = reference.thought_states(text[: i + 1], i, [])[-1]
            moved = reference.mix(base, talk) - base
            weights.append(moved @ (talk - base) / (talk - base).norm() ** 2)
    return torch.stack(weights)


@ALL_METHODS
@torch.no_grad()
def test_some_positions_are_predicted_as_among_all(method):
    model = quiet_star(LLAMA, method=method).eval()
    (ids, mask, _), some = padded("left"), torch.tensor([TOKENS - 1, 5])
    whole, part = model(ids, mask), model(ids, mask, positions=some)
    for name in ("logits", "base_logits", "weight"):
        torch.testing.assert_close(getattr(part, name), getattr(whole, name)[:, some])


# Nothing is sampled, and no policy learned


@pytest.fixture
def no_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever samples a thought fails."""

    def refuse(*_: object) -> None:
        raise AssertionError("a thought was sampled")

    monkeypatch.setattr(model_module, "sample_thoughts", refuse)


def test_quiet_star_would_be_caught(no_sampling):
    model, ids = quiet_star(LLAMA), random_ids(2, 6)
    with pytest.raises(AssertionError, match="was sampled"):
        model(ids, labels=ids)


@pytest.mark.parametrize("method", [PAUSE, NO_THOUGHT])
def test_nothing_is_sampled(method, no_sampling):
    """Not when training nor when predicting, with gradients or without; so a seed makes no difference."""
    model, (ids, mask, labels) = quiet_star(LLAMA, method=method), padded("right")
    found = []
    for seed in (1, 2):
        options = {"sampling": Sampling(1.0, seed), "text_keys": torch.arange(3) + seed}
        step, prediction = model(ids, mask, labels=labels, **options), model(ids, mask, **options)
        with torch.no_grad():
            torch.testing.assert_close(model(ids, mask, **options).logits, prediction.logits)
        found.append([step.loss, prediction.logits, *gradients(model, step.loss).values()])
        assert step.thoughts is None and prediction.thoughts is None
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("setting", [{"policy_weight": 1e6}, {"policy_temperature": 9.0}, {"rationales": 7}], ids=str)
@pytest.mark.parametrize("method", [PAUSE, NO_THOUGHT])
def test_what_only_quiet_star_has_changes_nothing(method, setting):
    ids, mask, labels = padded("right")
    found = []
    for settings in ({}, setting):
        model = quiet_star(LLAMA, method=method, **settings)
        loss = model(ids, mask, labels=labels).loss
        found.append([loss, *gradients(model, loss).values()])
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


@pytest.mark.parametrize("method", [PAUSE, NO_THOUGHT])
def test_no_gradient_reaches_embeddings_of_tokens_that_are_not_in_the_text(method):
    """A sampled thought has them; untied, the head does not."""
    ids = torch.tensor([[3, 4, 5, 3, 4, 6, 3]])
    others = torch.ones(23, dtype=torch.bool).index_fill(0, ids[0], False)
    for each, reached in ((method, False), (QUIET_STAR, True)):
        model = quiet_star({**LLAMA, "tie_word_embeddings": False}, method=each)
        gradients(model, model(ids, labels=ids).loss)
        gradient = model.get_input_embeddings().weight.grad
        assert gradient[ids].any()
        assert gradient[others].any() == reached


def test_each_pause_is_of_its_own():
    """Places have their own embeddings: two swapped give another prediction."""
    model, ids = quiet_star(LLAMA, method=PAUSE).eval(), random_ids(2, 6)
    with torch.no_grad():
        before = model(ids).logits
        model.pause_embeddings.copy_(model.pause_embeddings[[0, 2, 1]])
        assert error(model(ids).logits, before) > 1e-3


# Continued pretraining is the base model's own


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_without_thoughts_the_loss_is_the_base_models_own(base, tied):
    """And every gradient; transformers' own forward, attention and cross-entropy."""
    base = {**base, "tie_word_embeddings": tied}
    check_continued_pretraining(quiet_star(base, method=NO_THOUGHT), EXACT["float32"])


def test_without_thoughts_in_double_precision():
    check_continued_pretraining(quiet_star(GPT2, method=NO_THOUGHT).double(), EXACT["float64"])


def check_continued_pretraining(model: QuietStarForCausalLM, tolerance: float) -> None:
    ids, mask, labels = padded("right")
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


@torch.no_grad()
def test_without_thoughts_the_prediction_is_the_base_prediction():
    model, (ids, mask, _) = quiet_star(LLAMA, method=NO_THOUGHT).eval(), padded("left")
    output = model(ids, mask)
    assert torch.equal(output.logits, output.base_logits)
    assert output.weight.shape == ids.shape and not output.weight.any() and output.thoughts is None


def test_the_loss_of_one_text_does_not_see_another():
    """Padding and all: the mean over real tokens, not of texts' means."""
    model, (ids, mask, labels) = quiet_star(LLAMA, method=NO_THOUGHT), padded("right")
    whole = model(ids, mask, labels=labels).loss.item()
    alone = [model(torch.tensor([text]), labels=torch.tensor([text])).loss.item() for text in unpadded(ids, mask)]
    weights = [length - 1 for length in LENGTHS]
    assert whole == pytest.approx(
        sum(w * loss for w, loss in zip(weights, alone, strict=True)) / sum(weights), rel=1e-5
    )


OWN = {
    QUIET_STAR: {
        "start_embedding",
        "end_embedding",
        *(f"mixing_head.{i}.{n}" for i in "02" for n in ("weight", "bias")),
    }
    | {"mixing_head.4.weight"},
    NO_THOUGHT: set(),
}
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


# Text is written as recomputation writes it


def prompts() -> list[Tensor]:
    return [random_ids(length, seed=length) for length in (5, 3, 6)]


def left_padded(texts: list[Tensor]) -> tuple[Tensor, Tensor]:
    width = max(len(text) for text in texts)
    ids = torch.stack([torch.cat([text.new_full((width - len(text),), 9), text]) for text in texts])
    mask = torch.stack([torch.arange(width) >= width - len(text) for text in texts]).long()
    return ids, mask


@torch.no_grad()
def recomputed(
    model: QuietStarForCausalLM, text: Tensor, sampling: Sampling, thoughts: Sampling, key: int, think: bool
) -> Tensor:
    """The new tokens of one unpadded text, each from a forward pass over all of it."""
    keys, written = torch.tensor([key]), text[None]
    for _ in range(NEW):
        output = model(written, sampling=thoughts, text_keys=keys)
        logits = ban((output.logits if think else output.base_logits)[:, -1], model.banned)
        chance = uniforms(sampling.seed, keys, 1, torch.tensor([[written.shape[1] - 1]]), TEXT_STEP)[:, 0, 0]
        new = draw(logits, logits.softmax(-1), sampling, chance)
        written = torch.cat([written, new[:, None]], dim=1)
    return written[0, len(text) :]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(0.8, seed=4)], ids=["greedy", "sampled"])
@pytest.mark.parametrize("think", [True, False], ids=["think", "do not"])
@ALL_METHODS
@FAMILIES
def test_text_equals_recomputation(base, method, think, sampling):
    model, texts, keys = quiet_star(base, method=method).eval(), prompts(), [11, 3, 8]
    thoughts = Sampling(1.0, seed=9) if sampling != GREEDY else GREEDY
    options = {"max_new_tokens": NEW, "sampling": sampling, "thought_sampling": thoughts, "think": think}
    expected = [recomputed(model, t, sampling, thoughts, k, think) for t, k in zip(texts, keys, strict=True)]
    together = model.generate(*left_padded(texts), text_keys=torch.tensor(keys), **options)
    assert torch.equal(together[:, -NEW:], torch.stack(expected))


@pytest.mark.parametrize(
    "base",
    [LLAMA, MISTRAL_WINDOW, GEMMA2, GPT2],
    ids=["llama", "mistral, window", "gemma2", "gpt2"],
)
def test_text_without_padding_equals_recomputation(base):
    """A batch of one goes without a mask, wherever it can."""
    text, sampling = prompts()[1], Sampling(0.8, seed=4)
    for method in METHODS:
        model = quiet_star(base, method=method).eval()
        for think in (True, False):
            options = {"sampling": sampling, "thought_sampling": sampling, "think": think}
            alone = model.generate(text[None], max_new_tokens=NEW, text_keys=torch.tensor([3]), **options)[0]
            assert torch.equal(alone[-NEW:], recomputed(model, text, sampling, sampling, 3, think)), (method, think)


@pytest.mark.parametrize("think", [True, False], ids=["think", "do not"])
@ALL_METHODS
def test_each_sample_equals_recomputation_under_its_own_name(method, think):
    model, text, sampling = quiet_star(LLAMA, method=method).eval(), prompts()[0], Sampling(1.0, seed=4)
    options = {"sampling": sampling, "thought_sampling": sampling, "think": think, "text_keys": torch.tensor([5])}
    written = model.generate(text[None], max_new_tokens=NEW, samples=2, **options)
    for sample, key in enumerate((5, 5 + SAMPLES_APART)):
        assert torch.equal(written[sample, -NEW:], recomputed(model, text, sampling, sampling, key, think))
    assert not torch.equal(written[0], written[1])


def test_pauses_write_as_the_slow_reference_predicts():
    model, text = quiet_star(LLAMA, method=PAUSE).eval(), random_ids(4)
    written, reference = model.generate(text[None], max_new_tokens=4)[0].tolist(), slow(model)
    for length in range(4, 8):
        logits = reference.mixed_logits(written[:length], length - 1, [])
        assert written[length] == reference.without_banned(logits).argmax().item()


@pytest.mark.parametrize("method", [QUIET_STAR, PAUSE])
def test_thinking_changes_what_is_written(method):
    """Or the tests above would not tell the two ways apart."""
    model, ids = quiet_star(LLAMA, method=method).eval(), random_ids(8, 5)
    assert not torch.equal(model.generate(ids, think=True), model.generate(ids, think=False))


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.0, seed=4)], ids=["greedy", "sampled"])
def test_without_thoughts_there_is_nothing_to_switch_off(sampling):
    model, (ids, mask) = quiet_star(LLAMA, method=NO_THOUGHT).eval(), left_padded(prompts())
    written = [model.generate(ids, mask, sampling=sampling, think=think) for think in (True, False)]
    assert torch.equal(*written)


@pytest.mark.parametrize(("method", "think"), [(PAUSE, True), *((method, False) for method in METHODS)])
def test_a_seed_of_thoughts_makes_no_difference_where_none_are_sampled(method, think):
    model, ids = quiet_star(LLAMA, method=method).eval(), random_ids(8, 5)
    written = [model.generate(ids, thought_sampling=Sampling(1.0, seed), think=think) for seed in (1, 2)]
    assert torch.equal(*written)


@pytest.mark.parametrize(
    "method, think, first, later",
    [
        (QUIET_STAR, True, [6, 1, 1, 2], [2, 1, 1, 2]),
        (PAUSE, True, [6, 4], [2, 4]),  # the text and [start], then all pauses and [end]
        (PAUSE, False, [5], [1]),
        (QUIET_STAR, False, [5], [1]),
        (NO_THOUGHT, True, [5], [1]),
    ],
)
def test_passes_that_a_token_costs(method, think, first, later, monkeypatch):
    model, passes, run = quiet_star(LLAMA, method=method).eval(), [], Decoder.run
    monkeypatch.setattr(Decoder, "run", lambda self, x, *rest: passes.append(x.shape[1]) or run(self, x, *rest))
    model.generate(random_ids(1, 5), max_new_tokens=3, think=think)
    assert passes == first + later + later


@ALL_METHODS
def test_meta_tokens_are_never_written(method):
    model = quiet_star({**LLAMA, "tie_word_embeddings": False}, method=method).eval()
    ids, banned = random_ids(2, 5), torch.tensor([START, END])
    with torch.no_grad():
        model.base.lm_head.weight[banned] = 50 * model.decoder.read(ids)[0].flatten(0, 1).mean(0)
        output = model(ids)
    for think, logits in ((True, output.logits), (False, output.base_logits)):
        assert torch.isin(logits.argmax(-1), banned).any()
        assert not torch.isin(model.generate(ids, think=think), banned).any()


# Made from a base, saved, loaded


def from_base(method: str, base: dict = LLAMA, **options: object) -> QuietStarForCausalLM:
    settings = {"thought_tokens": 3, "lookahead": 2, "start_token_id": START, "end_token_id": END, "method": method}
    return QuietStarForCausalLM.from_base(base_model(base, **options), [3, 5], **settings).eval()


@ALL_METHODS
@FAMILIES
@torch.no_grad()
def test_untrained_it_predicts_and_writes_as_the_base(base, method):
    model, plain, ids = from_base(method, base), base_model(base, attn_implementation="eager").eval(), random_ids(2, 6)
    output, other = model(ids), from_base(NO_THOUGHT, base)
    assert torch.equal(output.logits, output.base_logits) and not output.weight.any()
    assert torch.equal(output.logits, other(ids).logits)
    assert error(output.logits, plain(ids, use_cache=False).logits) < 1e-5
    assert torch.equal(model.generate(ids), other.generate(ids))
    assert model(ids, labels=ids).losses.base.item() == pytest.approx(other(ids, labels=ids).loss.item(), rel=1e-6)


@pytest.mark.parametrize("base", [LLAMA, ARCHITECTURES["gemma"]], ids=["llama", "gemma, whose embeddings are scaled"])
@ALL_METHODS
def test_what_a_method_adds_starts_as_the_mean_embedding(method, base):
    model = from_base(method, base)
    with torch.no_grad():
        expected = model.get_input_embeddings()(torch.tensor([3, 5])).mean(0)
    names = {QUIET_STAR: ["start", "end"], PAUSE: ["start", "end", "pause"], NO_THOUGHT: []}[method]
    found = [getattr(model, f"{name}_embedding" + "s" * (name == "pause")) for name in names]
    assert [id(p) for p in model.meta_tokens()] == [id(p) for p in found]
    for name, parameter in zip(names, found, strict=True):
        assert parameter.shape == ((3, 16) if name == "pause" else (16,))
        torch.testing.assert_close(parameter.data * model.config.meta_token_scale, expected.expand_as(parameter))
    assert len({parameter.data_ptr() for parameter in found}) == len(found)


@ALL_METHODS
@FAMILIES
def test_saved_and_loaded_it_is_the_same(base, method, tmp_path):
    model, ids = quiet_star(base, method=method).eval(), random_ids(2, 6)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["method"] == method
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is QuietStarForCausalLM and loaded.config.method == method
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert torch.equal(loaded(ids, labels=ids).loss, model(ids, labels=ids).loss)
    assert torch.equal(loaded.generate(ids), model.generate(ids))


def test_a_model_from_before_there_were_methods_is_quiet_star(tmp_path: Path):
    quiet_star(LLAMA).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["method"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).method == QUIET_STAR


@pytest.mark.parametrize("method", ["", "pauses", "Pause", None])
def test_an_unknown_method_is_refused(method):
    with pytest.raises(ValueError, match="method is .* must be one of quiet_star, pause, no_thought"):
        QuietStarConfig(base=LLAMA, method=method)
    with pytest.raises(ValueError, match="method is"):
        QuietStarForCausalLM.from_base(base_model(LLAMA), [3], method=method)


# Other precisions


@pytest.mark.parametrize("engine", [DEFAULT_ENGINE, Engine("blocked", 4)], ids=["whole", "sliced"])
@pytest.mark.parametrize("method", [PAUSE, NO_THOUGHT])
@pytest.mark.parametrize("base", [LLAMA, GEMMA2, GPT2], ids=["llama", "gemma2", "gpt2"])
def test_bfloat16_and_autocast_are_close_to_float32(base, method, engine):
    model, (ids, mask, labels) = quiet_star(base, method=method), padded("right")
    half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    expected = model(ids, mask, labels=labels).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model(ids, mask, labels=labels, engine=engine)
    for each, output in ((model, lowered), (half, half(ids, mask, labels=labels, engine=engine))):
        found = gradients(each, output.loss)
        assert {gradient.dtype for gradient in found.values()} == {each.dtype}
        assert all(gradient.isfinite().all() for gradient in found.values())
        for field in fields(Losses):
            if field.name not in ("total", "log_probs"):
                assert getattr(output.losses, field.name).dtype == torch.float32, field.name
        assert error(output.losses.base_nll, expected.base_nll) < 0.05
    assert half.generate(ids, max_new_tokens=2).shape == (3, TOKENS + 2)
