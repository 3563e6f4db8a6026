"""What the rest of the family adds to training: inner epochs, averaged weights, a value, lengths, a temperature."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipeline import params
from pipeline.data.corpus.build import PROBE
from pipeline.data.spans import Spans
from pipeline.files import write_rows
from pipeline.models.trained import load_trained
from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import SliceLosses, counts_of
from pipeline.thought.sampler import Sampling
from pipeline.thought.value import Value
from pipeline.training.checkpoints import last_checkpoint
from pipeline.training.quiet_star.epochs import Repeated
from pipeline.training.quiet_star.train import write_trained
from pipeline.training.quiet_star.trainer import LOSS_COLUMNS, QuietStarTrainer, parameter_groups
from tests.local_hub import model_folder
from tests.thought.tiny import ENDING, LLAMA, quiet_star
from tests.training.quiet_star.test_trainer import TRAIN, column, run_until, some_spans, trainer, weights

RLP = replace(TRAIN, rlp=params.Rlp(clip=0.2, epochs=2), steps=6, batch_size=2, accumulation=2, policy_temperature=0.7)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Spans:
    return some_spans(tmp_path_factory.mktemp("spans") / "spans.arrow", last=6)


def run(spans: Spans, settings: params.Train, method: str = "quiet_star", **model: object) -> QuietStarTrainer:
    one = trainer(quiet_star(LLAMA, method=method, policy_weight=5.0, **model), spans, settings)
    one.run()
    return one


def outputs(one: QuietStarTrainer) -> list[tuple[dict, QuietStarOutput]]:
    """The micro-batches of a run that is still to come, and what came of them."""
    found, forward = [], one.model.forward

    def spy(*args: object, **given: object) -> QuietStarOutput:
        output = forward(*args, **given)
        if one.model.training:
            found.append((given, output))
        return output

    one.model.forward = spy
    return found


def test_inner_epochs_are_on_the_same_texts_and_thoughts(spans: Spans):
    """And on the advantages of the pass that sampled them; the next batch has others. All texts are read."""
    one = trainer(quiet_star(LLAMA, method="rlp", policy_weight=5.0), spans, RLP)
    found = outputs(one)
    one.run()
    for batch in (0, 1, 2):
        for micro in (0, 1):
            (given, first), (again, second) = found[4 * batch + micro], found[4 * batch + 2 + micro]
            assert torch.equal(given["text_keys"], again["text_keys"]) and "old" not in given
            assert torch.equal(again["thought_ids"], first.thoughts.ids)
            assert torch.equal(second.losses.advantage, first.losses.advantage)
            assert not torch.equal(second.losses.reward, first.losses.reward)
            ratio = (second.losses.log_probs - first.losses.log_probs).exp()[first.losses.log_probs != 0]
            assert (ratio - 1).abs().max() > 0.01
    texts = [given["text_keys"].tolist() for given, _ in found]
    assert sorted(sum(texts[0:2] + texts[4:6], [])) == list(range(8))
    assert (
        column(one.state.log_history, "thought_entropy")[0::2] == column(one.state.log_history, "thought_entropy")[1::2]
    )


def test_each_steps_texts_are_repeated():
    order = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert list(Repeated(order, 2, 1)) == order
    assert list(Repeated(order, 2, 3)) == [0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3]
    assert list(Repeated(order, 4, 2)) == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7] and len(Repeated(order, 4, 2)) == 12


def test_with_one_epoch_the_clip_is_inert(spans: Spans):
    """It bites from the second on."""

    def after(clip: float, epochs: int) -> torch.Tensor:
        settings = replace(RLP, rlp=params.Rlp(clip=clip, epochs=epochs))
        return weights(run(spans, settings, "rlp", ratio_clip=clip).model)

    assert torch.equal(after(1e-9, 1), after(9.0, 1))
    assert not torch.equal(after(1e-9, 2), after(9.0, 2))


def test_rlp_leaves_the_mixing_head_as_it_is(spans: Spans):
    """With weight decay; and it logs what Quiet-STaR does."""
    model = quiet_star(LLAMA, method="rlp", policy_weight=5.0)
    before = {name: value.clone() for name, value in model.mixing_head.state_dict().items()}
    log = trainer(model, spans, RLP).run()
    assert all(torch.equal(value, before[name]) for name, value in model.mixing_head.state_dict().items())
    for name in (*LOSS_COLUMNS, "thought_entropy"):
        assert all(map(pd.notna, column(log, name))), name
    assert column(log, "loss") == pytest.approx(
        [5 * policy for policy in column(log, "policy_loss")], rel=1e-4, abs=1e-6
    )


METHODS = {
    "rlp": (RLP, {}),
    "value": (replace(RLP, rationales=1), {"rationales": 1}),
    "quiet_star": (replace(RLP, clip="apart"), {"advantage": "signed"}),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("step", [3, 4, 5])
def test_killed_anywhere_it_resumes_to_the_same_weights(
    method: str, step: int, spans: Spans, monkeypatch: pytest.MonkeyPatch
):
    """With averaged weights, and between the inner epochs of a batch, where no checkpoint is taken."""
    settings, given = METHODS[method]
    settings = replace(settings, ema=0.8)
    whole = run(spans, settings, method, **given)
    shutil.rmtree("checkpoints", ignore_errors=True)  # on a slow machine the run has taken some
    model = quiet_star(LLAMA, method=method, policy_weight=5.0, **given)
    run_until(step, lambda: trainer(model, spans, settings), monkeypatch)
    taken = last_checkpoint(Path("checkpoints")).name
    assert taken == f"step-{step // 2 * 2 if method == 'rlp' else step}"
    again = run(spans, settings, method, **given)
    assert torch.equal(weights(again.model), weights(whole.model))
    for name in ("loss", "reward", "ema_gain"):
        assert column(again.state.log_history, name) == column(whole.state.log_history, name)


def test_averaged_weights_change_no_gradient_and_no_weight(spans: Spans):
    """They only say what thoughts gain over the averaged model without thoughts, which starts as the model itself."""
    plain, averaged = run(spans, TRAIN), run(spans, replace(TRAIN, ema=0.5))
    assert torch.equal(weights(plain.model), weights(averaged.model))
    for name in ("loss", "grad_norm", *LOSS_COLUMNS):
        assert column(plain.state.log_history, name) == column(averaged.state.log_history, name), name
    gain, reward = (column(averaged.state.log_history, name) for name in ("ema_gain", "reward"))
    assert gain[0] == pytest.approx(reward[0], rel=1e-4) and gain[1] != pytest.approx(reward[1], rel=1e-3)
    assert not any("ema_gain" in row for row in plain.state.log_history)


def test_the_gain_is_over_the_average_of_the_weights_after_each_step(spans: Spans):
    """By hand: 0.5 of it and 0.5 of the new weights, and cross-entropies of that model's own predictions."""
    one = trainer(quiet_star(LLAMA, policy_weight=5.0), spans, replace(TRAIN, steps=3, ema=0.5))
    found, kept, clip = outputs(one), [], one.clip
    one.clip = lambda model: (
        kept.append({n: p.detach().clone() for n, p in one.model.named_parameters()}),
        clip(model),
    )[1]
    one.run()
    mean = kept[0]  # the weights before step 1
    for after in kept[1:]:
        mean = {name: 0.5 * value + 0.5 * after[name] for name, value in mean.items()}
    other = quiet_star(LLAMA)
    other.load_state_dict(mean, strict=False)
    given, output = found[-1]
    ids, labels, losses = given["input_ids"], given["labels"], output.losses
    logits = other.decoder.head.logits(other.decoder.read(ids, given["attention_mask"])[0]).log_softmax(-1)
    gains = []
    for b, i in losses.thinks[:, : losses.reward.shape[2]].nonzero().tolist():
        ahead = [k for k in range(3) if labels[b, i + 1 + k] >= 0]
        without = -sum(logits[b, i + k, ids[b, i + 1 + k]] for k in ahead)
        gains += [(without - losses.talk_nll[b, r, i].sum()).item() for r in range(2)]
    assert column(one.state.log_history, "ema_gain")[-1] == pytest.approx(sum(gains) / len(gains), rel=1e-4)


def test_thoughts_that_end_have_a_mean_length(spans: Spans):
    """Over all positions that think, however the step is divided."""
    found = [
        run(spans, replace(TRAIN, steps=1, batch_size=8 // parts, accumulation=parts), **ENDING) for parts in (1, 4)
    ]
    lengths = [column(one.state.log_history, "thought_length") for one in found]
    assert lengths[0] == pytest.approx(lengths[1], rel=1e-6) and 0 < lengths[0][0] < 3
    assert not any("thought_length" in row for row in run(spans, replace(TRAIN, steps=1)).state.log_history)


def test_training_samples_thoughts_at_its_temperature(spans: Spans):
    inputs = {name: torch.stack([spans[i][name] for i in (2, 5)]) for name in spans[0]}
    one = trainer(quiet_star(LLAMA), spans, replace(TRAIN, thought_temperature=0.4))
    counts = counts_of(inputs["labels"], one.model.lookahead)
    found = one.compute_loss(one.model, dict(inputs), True, counts)[1].thoughts.ids
    for temperature, same in ((0.4, True), (1.0, False)):
        drawn = one.model(**inputs, sampling=Sampling(temperature, one._seed)).thoughts.ids
        assert torch.equal(found, drawn) == same


def test_a_value_has_the_mixing_heads_rate_and_is_logged(spans: Spans):
    one = run(spans, TRAIN, "value", rationales=1)
    rates = {id(p): group["lr"] for group in parameter_groups(one.model, TRAIN) for p in group["params"]}
    assert {rates[id(p)] for p in one.model.objective.parameters()} == {0.02}
    assert min(column(one.state.log_history, "value_part")) > 0
    assert all((p != q).any() for p, q in zip(one.model.objective.parameters(), start("value"), strict=True))


@pytest.mark.parametrize("clip", ["together", "apart"])
def test_a_values_gradient_is_clipped_by_itself(clip: str, spans: Spans, monkeypatch: pytest.MonkeyPatch):
    """However large it is, the norm that is logged and all other gradients of a step stay the same to the bit."""

    def step(scale: float) -> tuple[list[float], dict[str, torch.Tensor], torch.Tensor]:
        def scaled(self: Value, *args: object) -> SliceLosses:
            losses = forward(self, *args)
            return replace(losses, parts=losses.parts | {"value": scale * losses.parts["value"]})

        monkeypatch.setattr(Value, "forward", scaled)
        settings = replace(TRAIN, steps=1, gradient_clip=0.05, clip=clip)
        one = trainer(quiet_star(LLAMA, method="value", policy_weight=5.0, rationales=1), spans, settings)
        with torch.no_grad():
            one.model.objective.outer.fill_(0.01)
        others, whole = {}, one.clip

        def spy(model: torch.nn.Module) -> torch.Tensor:
            norm = whole(model)
            others.update({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
            return norm

        one.clip = spy
        one.run()
        own = [others.pop(name) for name in list(others) if name.startswith("objective.")]
        return column(one.state.log_history, "grad_norm"), others, torch.cat([g.flatten() for g in own]).norm()

    forward = Value.forward
    (norm, others, small), (again, same, large) = step(1e-3), step(1e3)
    assert norm == again and norm[0] > 0.05
    assert others.keys() == same.keys() and all(torch.equal(value, same[name]) for name, value in others.items())
    assert 0 < small < 0.04 and large.item() == pytest.approx(0.05, rel=1e-3)


def start(method: str) -> list[torch.Tensor]:
    return list(quiet_star(LLAMA, method=method, rationales=1).objective.parameters())


@pytest.mark.parametrize("method", ["rlp", "value"])
@pytest.mark.parametrize("kept", [{}, {"adapt": "frozen", "saved": "learned"}], ids=["whole", "learned"])
def test_what_was_trained_is_read_back(method: str, kept: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """All of it: frozen mixing head, value, and the columns of its own."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model_folder(tmp_path / "base", "llama", num_attention_heads=2, intermediate_size=24)
    for name in ("train", "heldout"):
        some_spans(tmp_path / f"{name}.arrow")
    write_rows(tmp_path / "probe.parquet", [], PROBE)
    trained: list[QuietStarForCausalLM] = []
    whole = QuietStarTrainer.run
    monkeypatch.setattr(QuietStarTrainer, "run", lambda self: (whole(self), trained.append(self.model))[0])
    places = (tmp_path / name for name in ("base", "", "probe.parquet", "out", "results/train/out"))
    write_trained(replace(TRAIN, ema=0.9, **kept), method, 1, *places)
    again = load_trained(tmp_path / "out").state_dict()
    assert trained[0].state_dict().keys() == again.keys()
    assert all(torch.equal(value, again[name]) for name, value in trained[0].state_dict().items())
    steps = pd.read_csv(tmp_path / "results/train/out/steps.csv")
    assert list(steps.columns[-2:]) == ["learning_rate" if method == "rlp" else "value_part", "ema_gain"]
    names = load_file(tmp_path / "out" / ("learned.safetensors" if kept else "model.safetensors"))
    assert ("base.lm_head.weight" in names) == (not kept)
