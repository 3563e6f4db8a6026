"""Training in stages: each step has its stage's thoughts and rates, whatever has been killed or divided before it."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline import params
from pipeline.data.corpus.build import PROBE
from pipeline.data.spans import Spans
from pipeline.files import write_rows
from pipeline.models.trained import load_trained
from pipeline.params import Stage
from pipeline.thought.methods import NO_THOUGHT, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.training.quiet_star.schedule import settings_of, stage_at
from pipeline.training.quiet_star.train import write_trained
from pipeline.training.quiet_star.trainer import LOSS_COLUMNS, SEEDS_APART, QuietStarTrainer
from pipeline.training.trainer import Speed, logged
from tests.local_hub import model_folder
from tests.thought.tiny import LLAMA, quiet_star
from tests.training.quiet_star.test_trainer import TRAIN, column, run_until, some_spans, trainer, weights

FIRST, SECOND = Stage(3, 3, 0.01, 2), Stage(2, 1, 0.004, 2)
STAGED = settings_of(replace(TRAIN, stages=[FIRST, SECOND], evaluation_steps=3), QUIET_STAR)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Spans:
    return some_spans(tmp_path_factory.mktemp("spans") / "spans.arrow", last=6)


def a_trainer(spans: Spans, settings: params.Train = STAGED) -> QuietStarTrainer:
    return trainer(quiet_star(LLAMA, policy_weight=settings.policy_weight), spans, settings)


def heldout(log: list[dict]) -> pd.DataFrame:
    return logged(log, ["eval_base_loss", "eval_talk_loss"], needed="eval_base_loss")


def test_the_stage_follows_from_the_step():
    stages = [Stage(3, 3, 0.01, 2), Stage(2, 1, 0.004, 1), Stage(1, 1, 0.004, 3)]
    assert [stage_at(replace(TRAIN, stages=stages), step) for step in range(6)] == [0, 0, 1, 2, 2, 2]
    assert {stage_at(replace(TRAIN, steps=6), step) for step in range(6)} == {0}
    assert (STAGED.steps, STAGED.thought_tokens, STAGED.lookahead, STAGED.learning_rate) == (4, 2, 1, 0.01)
    before = settings_of(replace(TRAIN, stages=stages), "before")
    assert (before.steps, before.stages, before.thought_tokens) == (0, [], 1)


def test_a_stage_goes_on_as_a_run_of_its_own_would(spans: Spans):
    """The first is that run to the bit; the second's first step, by hand, from its weights and its optimizer."""
    one = a_trainer(spans)
    seen, clip = [], one.clip

    def spy(model: torch.nn.Module) -> torch.Tensor:
        seen.append((weights(model), model.config.thought_tokens, model.config.lookahead))
        return clip(model)

    one.clip = spy
    log = one.run()
    alone = a_trainer(spans, replace(TRAIN, steps=2, thought_tokens=3, lookahead=3, evaluation_steps=3))
    alone_log = alone.run()
    assert [sizes for _, *sizes in seen] == [[3, 3], [3, 3], [2, 1], [2, 1]]
    model = alone.model
    assert torch.equal(seen[2][0], weights(model))
    for name in (*LOSS_COLUMNS, "learning_rate", "grad_norm"):
        assert column(log, name)[:2] == column(alone_log, name), name
    first, second = heldout(alone_log), heldout(log)
    assert list(second["step"]) == [0, 2, 3, 4] and first.equals(second[:2])

    batch = list(one.get_train_dataloader())[2]
    model.config.thought_tokens, model.config.lookahead = 2, 1
    model.zero_grad()
    output = model(**batch, sampling=Sampling(seed=SEEDS_APART + 2))
    assert output.thoughts.ids.shape[-1] == 2 and output.losses.talk_nll.shape[-1] == 1
    output.loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer = alone.optimizer
    for group in optimizer.param_groups:
        group["lr"] *= 0.4  # the mixing head's too
    optimizer.step()
    torch.testing.assert_close(seen[3][0], weights(model), rtol=1e-5, atol=1e-7)
    assert column(log, "loss")[2] == pytest.approx(output.loss.item(), rel=1e-5)
    assert column(log, "learning_rate") == pytest.approx([0.01, 0.01, 0.004, 0.004])


def test_each_stage_has_its_own_speed(spans: Spans, monkeypatch: pytest.MonkeyPatch):
    """The work of a step, which MFU divides by, is that of its thoughts."""
    asked = []

    def speed(settings: params.Train, model: QuietStarForCausalLM, tokens: float) -> Speed:
        asked.append((settings.thought_tokens, settings.lookahead))
        return Speed(tokens, share=float(settings.thought_tokens))

    monkeypatch.setattr("pipeline.training.quiet_star.trainer.speed_of", speed)
    log = a_trainer(spans).run()
    assert asked == [(3, 3), (2, 1)]
    shares = [mfu / rate for mfu, rate in zip(column(log, "mfu"), column(log, "steps_per_second"), strict=True)]
    assert shares == pytest.approx([3, 3, 2, 2])


def test_rates_warm_up_in_the_first_stage_only(spans: Spans):
    settings = replace(STAGED, stages=[replace(FIRST, steps=3), SECOND], warmup_steps=2, steps=5)
    one = a_trainer(spans, settings)
    assert column(one.run(), "learning_rate") == pytest.approx([0.0, 0.005, 0.01, 0.004, 0.004])
    assert {round(group["lr"], 9) for group in one.optimizer.param_groups} == {0.004, 0.008}


@pytest.mark.parametrize("step", [1, 2, 3], ids=["before", "at", "after"])
def test_a_run_that_was_killed_around_a_boundary_resumes_to_the_bit(step: int, spans: Spans, monkeypatch):
    whole = a_trainer(spans)
    log = whole.run()
    run_until(step, lambda: a_trainer(spans), monkeypatch)
    again = a_trainer(spans)
    again.args.eval_on_start = False  # as `train._trainer` has it
    found = again.run()
    assert torch.equal(weights(again.model), weights(whole.model))
    for name in (*LOSS_COLUMNS, "learning_rate", "grad_norm"):
        assert column(found, name) == column(log, name), name
    assert heldout(found).equals(heldout(log))


def test_two_micro_batches_are_one_in_each_stage(spans: Spans):
    """Though the lookahead, and with it what the means are taken over, changes between them."""
    settings = replace(STAGED, stages=[replace(FIRST, steps=1), replace(SECOND, steps=1)], steps=2, batch_size=8)
    log = a_trainer(spans, settings).run()
    other = a_trainer(spans, replace(settings, batch_size=4, accumulation=2)).run()
    for name in [*LOSS_COLUMNS, "thought_entropy", "grad_norm"]:
        assert column(other, name) == pytest.approx(column(log, name), rel=1e-4, abs=1e-7), name


def in_files(folder: Path, settings: params.Train, method: str) -> Path:
    """Train on a tiny base model from and to files."""
    model_folder(folder / "base", "llama", num_attention_heads=2, intermediate_size=24)
    for name in ("train", "heldout"):
        some_spans(folder / f"{name}.arrow")
    write_rows(folder / "probe.parquet", [], PROBE)
    places = (folder / place for place in ("base", "", "probe.parquet", "out", "results/train/out"))
    write_trained(settings, method, 1, *places)
    return folder / "results/train/out"


@pytest.mark.parametrize("method", [QUIET_STAR, NO_THOUGHT, "untrained"])
def test_what_is_written(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """One curve with its stages; the model has the last stage's lengths, whatever the settings of train are."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    results = in_files(tmp_path, replace(TRAIN, stages=[FIRST, SECOND], evaluation_texts=4), method)
    model = load_trained(tmp_path / "out")
    assert (model.config.thought_tokens, model.config.lookahead) == (2, 1)
    steps, heldout = (pd.read_csv(results / f"{name}.csv") for name in ("steps", "heldout"))
    trained = method != "untrained"
    assert list(heldout.get("stage", [])) == ([1, 1, 1, 2, 2] if trained else [])
    assert list(steps.get("stage", [])) == ([1, 1, 2, 2] if trained else [])
    assert json.loads((results / "metrics.json").read_text())["steps"] == (4 if trained else 0)


def test_a_part_of_the_loss_that_a_method_adds_is_logged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """And without stages there is no column for them."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    results = in_files(tmp_path, replace(TRAIN, evaluation_texts=4), "distilled")
    steps = pd.read_csv(results / "steps.csv")
    assert list(steps.columns)[-1] == "distill_part" and steps["distill_part"].abs().lt(1e-3).all()  # both start alike
    total = 0.5 * steps["base_loss"] + 0.5 * steps["talk_loss"] + 5.0 * steps["policy_loss"] + steps["distill_part"]
    assert steps["loss"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-4)
    assert "stage" not in steps and "stage" not in pd.read_csv(results / "heldout.csv")
