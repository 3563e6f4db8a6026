"""The gate's loss and gradient are the formula's, it changes nothing else, and generation thinks where it says so."""

import math
from copy import deepcopy

import pytest
import torch
from torch import Tensor

from pipeline.thought.decoder import Decoder
from pipeline.thought.gate import threshold_for
from pipeline.thought.generation import GATE, continue_texts
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import counts_of, sum_counts
from pipeline.thought.sampler import ban
from pipeline.thought.step import Engine
from tests.thought.tiny import (
    GPT2,
    KINDS,
    LLAMA,
    compare_gradients,
    given_thoughts,
    gradients,
    left_padded,
    quiet_star,
    random_ids,
    slow,
    texts,
    unpadded,
)

NEW, LENGTHS = 6, (5, 3, 6)
KINDS_WITH_THOUGHTS = pytest.mark.parametrize("kind", [QUIET_STAR, PAUSE, "ending"])


def gated(base: dict = LLAMA, seed: int = 0, **settings: object) -> QuietStarForCausalLM:
    model = quiet_star(base, seed, gate=True, **settings)
    with torch.no_grad():
        for parameter in model.gate.parameters():
            parameter.normal_(std=0.4, generator=torch.Generator().manual_seed(5))
    return model


def slow_gate_loss(model: QuietStarForCausalLM, rows: list[list[int]], thoughts: Tensor | None, thinks: Tensor | None):
    """The mean over positions of (what the gate foresees - mean gain) squared, each thought as a text of its own."""
    reference, own, found = slow(model), dict(model.named_parameters()), []
    for b, text in enumerate(rows):
        states = reference.states(reference.embed(text)).detach()
        for i in range(len(text) - 1):
            if thinks is not None and not thinks[b, i]:
                continue
            base = -torch.log_softmax(reference.logits(states[i]), 0)[text[i + 1]]
            gains = []
            for r in range(1 if thoughts is None else thoughts.shape[1]):
                thought = [] if thoughts is None else thoughts[b, r, i].tolist()
                after = reference.mixed_logits(text[: i + 1], i, thought)
                gains.append((base + torch.log_softmax(after, 0)[text[i + 1]]).item())
            inner = torch.relu(own["gate.0.weight"] @ states[i] + own["gate.0.bias"])
            foreseen = (own["gate.2.weight"] @ inner + own["gate.2.bias"])[0]
            found.append((foreseen - sum(gains) / len(gains)) ** 2)
    return torch.stack(found).mean()


@pytest.mark.parametrize("positions", [None, 2])
@pytest.mark.parametrize("some", [False, True])
@KINDS_WITH_THOUGHTS
def test_loss_and_gradient_equal_the_slow_reference(kind: str, some: bool, positions: int | None):
    model, (ids, mask, labels) = gated(GPT2, **KINDS[kind]).double(), texts("right")
    thoughts = None if kind == PAUSE else given_thoughts()
    thinks = random_ids(*ids.shape, seed=8, below=2).bool() if some else None
    engine = Engine(positions=positions)
    output = model(ids, mask, labels, thought_ids=thoughts, thinks=thinks, engine=engine)
    expected = slow_gate_loss(model, unpadded(ids, mask), thoughts, thinks)
    torch.testing.assert_close(output.losses.parts["gate"], expected.detach(), rtol=1e-12, atol=0)
    mine = {name: g for name, g in gradients(model, output.loss).items() if name.startswith("gate.")}
    theirs = {name: g for name, g in gradients(model, expected).items() if name.startswith("gate.")}
    compare_gradients(mine, theirs, 1e-12)


@pytest.mark.parametrize(
    "engine", [Engine(), Engine(positions=2), Engine(apart=True)], ids=["whole", "slices", "apart"]
)
@pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2, tied head"])
def test_it_changes_no_other_loss_and_no_other_gradient(base: dict, engine: Engine):
    """To the bit, as the state that it reads is detached."""
    without, beside, found = quiet_star(base), gated(base), []
    without.load_state_dict(beside.state_dict(), strict=False)
    for model in (without, beside):
        torch.manual_seed(3)  # of the thoughts
        losses = model(*texts("right"), engine=engine).losses
        found.append((losses, gradients(model, losses.total)))
    (plain, expected), (losses, gradient) = found
    torch.testing.assert_close(losses.total.detach(), (plain.total + losses.parts["gate"]).detach())
    assert all(torch.equal(part, losses.parts[name]) for name, part in plain.parts.items())
    assert all(torch.equal(value, gradient[name]) for name, value in expected.items())


def test_micro_batches_add_up_to_the_step():
    model, (ids, mask, labels), thoughts = gated().double(), texts("right"), given_thoughts()
    whole = model(ids, mask, labels, thought_ids=thoughts)
    counts = sum_counts(counts_of(labels[i : i + 1], 3) for i in range(2))
    parts = [
        model(ids[i : i + 1], mask[i : i + 1], labels[i : i + 1], thought_ids=thoughts[i : i + 1], counts=counts)
        for i in range(2)
    ]
    torch.testing.assert_close(sum(part.losses.parts["gate"] for part in parts), whole.losses.parts["gate"])


def test_the_threshold_leaves_the_share_above_it():
    scores = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for share in (0.01, 0.05, 0.5, 1.0):
        assert (scores > threshold_for(scores, share)).sum() == round(share * 1000)


def test_its_scores_are_float32_in_low_precision():
    """Under autocast to the bit those without; of a model in bfloat16, those of its weights."""
    model, ids = gated().eval(), random_ids(2, 5)
    hidden = model.thinker.read(ids).hidden
    with torch.autocast("cpu", torch.bfloat16):
        assert model(ids).gate.dtype == model.gate_scores(ids).dtype == torch.float32
        found = model.gate(hidden)
    assert torch.equal(found, model.gate(hidden))
    low, states = deepcopy(model.gate).bfloat16(), hidden.bfloat16()
    found = low(states)
    assert found.dtype == torch.float32 and torch.equal(found, low.float()(states.float()))


def test_it_is_saved_with_its_threshold_and_only_where_it_is_asked_for(tmp_path):
    model, ids = gated(gate_threshold=0.25), random_ids(2, 5)
    model.save_pretrained(tmp_path)
    again = QuietStarForCausalLM.from_pretrained(tmp_path).eval()
    assert again.config.gate_threshold == 0.25
    assert torch.equal(again(ids).gate, model.eval()(ids).gate)
    torch.testing.assert_close(again(ids).gate, again.gate_scores(ids))
    assert quiet_star(LLAMA).gate is None and quiet_star(LLAMA, gate=True, method=NO_THOUGHT).gate is None
    assert quiet_star(LLAMA)(ids).gate is None
    with pytest.raises(ValueError, match="gate is 1, but must be true or false"):
        quiet_star(LLAMA, gate=1)


def prompts() -> list[Tensor]:
    return [random_ids(length, seed=length) for length in LENGTHS]


def open_for(model: QuietStarForCausalLM, share: float) -> None:
    """Make the gate say yes to about this share of what is asked here."""
    with torch.no_grad():
        scores = [model(text[None]).gate[0] for text in prompts()]
    model.config.gate_threshold = threshold_for(torch.cat(scores), share)


@torch.no_grad()
def recomputed(model: QuietStarForCausalLM, text: Tensor) -> tuple[list[int], list[bool]]:
    """The new tokens of one unpadded text, each from a pass over all of it, and whether a thought came before each."""
    written, thought = text, []
    for _ in range(NEW):
        output = model(written[None])
        thought.append(bool(output.gate[0, -1] > model.config.gate_threshold))
        logits = (output.logits if thought[-1] else output.base_logits)[0, -1]
        written = torch.cat([written, ban(logits, model.config.banned).argmax()[None]])
    return written[len(text) :].tolist(), thought


@KINDS_WITH_THOUGHTS
def test_generation_equals_recomputing_the_whole_text(kind: str):
    """In a batch padded on the left, in which some texts think and others do not, and alone."""
    model = gated(**KINDS[kind]).eval()
    open_for(model, 0.5)
    ids, mask = left_padded(prompts())
    expected, thought = zip(*(recomputed(model, text) for text in prompts()), strict=True)
    assert {True, False} <= {said for row in thought for said in row}
    assert any(len(set(step)) == 2 for step in zip(*thought, strict=True))
    options = {"max_new_tokens": NEW, "think": GATE}
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
    assert output.sequences[:, ids.shape[1] :].tolist() == list(expected)
    assert output.thought_share.item() == pytest.approx(sum(map(sum, thought)) / (NEW * len(thought)))
    assert torch.equal(continue_texts(model.thinker, ids, mask, **options), output.sequences)
    alone = model.generate(prompts()[1][None], **options)
    assert alone[0, LENGTHS[1] :].tolist() == expected[1]


@pytest.mark.parametrize(("threshold", "think", "share"), [(-math.inf, True, 1.0), (math.inf, False, 0.0)])
def test_a_gate_that_always_or_never_opens(threshold: float, think: bool, share: float):
    """Always: the scores of thinking everywhere, to the bit. Never: those of no thoughts, to rounding.

    For ``[start]`` is read together with the true token before it, by a pass of another shape.
    """
    model = gated().eval()
    model.config.gate_threshold = threshold
    ids, mask = left_padded(prompts())
    options = {"attention_mask": mask, "max_new_tokens": NEW, "return_dict_in_generate": True, "output_logits": True}
    expected, found = (model.generate(ids, think=how, **options) for how in (think, GATE))
    assert torch.equal(found.sequences, expected.sequences)
    assert expected.thought_share.item() == found.thought_share.item() == share
    for mine, theirs in zip(found.logits, expected.logits, strict=True):
        assert torch.equal(mine, theirs) if think else torch.allclose(mine, theirs, atol=1e-5)


def test_what_has_ended_neither_thinks_nor_counts():
    model = gated().eval()
    open_for(model, 0.5)
    ids, mask = left_padded(prompts())
    expected, thought = zip(*(recomputed(model, text) for text in prompts()), strict=True)
    end = expected[0][1]
    lengths = [row.index(end) + 1 if end in row else NEW for row in expected]
    assert len(set(lengths)) > 1
    options = {"max_new_tokens": NEW, "think": GATE, "eos_token_id": end, "pad_token_id": 0}
    output = model.generate(ids, attention_mask=mask, return_dict_in_generate=True, **options)
    kept = [said for row, length in zip(thought, lengths, strict=True) for said in row[:length]]
    assert output.thought_share.item() == pytest.approx(sum(kept) / len(kept))


def test_passes_that_a_token_costs(monkeypatch: pytest.MonkeyPatch):
    """K more passes for the texts that think, and one for a token before which none does."""
    model, passes, run = gated().eval(), [], Decoder.run
    open_for(model, 0.2)
    ids, mask = left_padded(prompts())
    thought = [recomputed(model, text)[1] for text in prompts()]
    monkeypatch.setattr(Decoder, "run", lambda self, x, *rest: passes.append(tuple(x.shape[:2])) or run(self, x, *rest))
    model.generate(ids, attention_mask=mask, max_new_tokens=NEW, think=GATE)
    expected = []
    for step, said in enumerate(zip(*thought, strict=True)):
        expected += [(3, ids.shape[1] + 1 if step == 0 else 2)]
        expected += [(sum(said), tokens) for tokens in (1, 1, 2)] if any(said) else []
    assert passes == expected and len(expected) < 4 * NEW


def test_another_word_than_gate_is_refused():
    model, ids = quiet_star(LLAMA, gate=True).eval(), random_ids(1, 5)
    with pytest.raises(ValueError, match="think is 'gated', but must be True, False, 'gate' or a function of"):
        model.generate(ids, max_new_tokens=2, think="gated")


def test_a_model_without_a_gate_is_told_of():
    model, ids = quiet_star(LLAMA).eval(), random_ids(1, 5)
    for write in (
        lambda: model.generate(ids, max_new_tokens=2, think=GATE),
        lambda: continue_texts(model.thinker, ids, think=GATE),
    ):
        with pytest.raises(ValueError, match="this model has no gate: train one with train.gate"):
            write()
