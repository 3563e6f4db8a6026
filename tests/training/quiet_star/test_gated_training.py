"""A gate in a whole training: nothing else changes, its threshold is that of its share, and it may choose positions."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from pipeline import params
from pipeline.data.corpus.build import PROBE
from pipeline.errors import UserError
from pipeline.files import write_rows
from pipeline.models.trained import load_trained
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.objective import lookahead_targets
from pipeline.thought.places import thinking
from pipeline.training.quiet_star.train import write_trained
from pipeline.training.quiet_star.where import EXPLORED
from tests.local_hub import model_folder
from tests.thought.test_gate import gated
from tests.training.quiet_star.test_trainer import SHIPPED, TRAIN, some_spans
from tests.training.quiet_star.test_where import LENGTHS, batch_of, where

GATED = replace(TRAIN, gate=True, gate_share=0.25)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model_folder(tmp_path / "base", "llama", num_attention_heads=2, intermediate_size=24)
    for name in ("train", "heldout"):
        some_spans(tmp_path / f"{name}.arrow", last=6)
    write_rows(tmp_path / "probe.parquet", [], PROBE)
    return tmp_path


def train(folder: Path, settings: params.Train, method: str = QUIET_STAR) -> Path:
    name = f"{method}-{settings.gate}"
    places = (folder / place for place in ("base", "", "probe.parquet", name, f"results/train/{name}"))
    write_trained(settings, method, 1, *places)
    return folder / name


@pytest.mark.parametrize("clip", ["together", "apart"])
def test_what_is_learned_beside_a_gate_is_what_is_learned_without(clip: str, folder: Path):
    """To the bit: its gradient is not part of the norm that is clipped."""
    without, beside = (train(folder, replace(settings, clip=clip, gradient_clip=0.1)) for settings in (TRAIN, GATED))
    plain, learned = (load_file(path / "model.safetensors") for path in (without, beside))
    assert {name for name in learned if name not in plain} == {
        f"gate.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")
    }
    assert all(torch.equal(value, learned[name]) for name, value in plain.items())
    logs = [pd.read_csv(folder / f"results/train/{path.name}/steps.csv") for path in (without, beside)]
    assert logs[1].pop("gate_part").between(0, 5, inclusive="neither").all()
    pd.testing.assert_frame_equal(*(log.drop(columns="loss") for log in logs))


@pytest.mark.parametrize("method", [QUIET_STAR, PAUSE])
def test_the_threshold_is_that_of_the_share_on_training_texts(method: str, folder: Path):
    model = load_trained(train(folder, GATED, method))
    spans = [some_spans(folder / "again.arrow", last=6)[i] for i in range(8)]
    ids, mask, labels = (
        torch.stack([span[name] for span in spans]) for name in ("input_ids", "attention_mask", "labels")
    )
    scores = model.gate_scores(ids, mask)[thinking(lookahead_targets(labels, 1), None)]
    assert len(scores) == 7 * 9 + 5
    assert (scores > model.config.gate_threshold).sum() == round(0.25 * len(scores))


@pytest.mark.parametrize("method", [NO_THOUGHT, "untrained"])
def test_what_never_learns_to_think_has_no_gate(method: str, folder: Path):
    settings = replace(GATED, thinking=replace(GATED.thinking, where="gate"))
    assert load_trained(train(folder, settings, method)).gate is None


def test_a_step_thinks_where_the_gate_says_and_at_as_many_places_at_random():
    """Of each text the share that the gate rates highest, about half of them at random."""
    model = gated()
    scores = model.gate_scores(batch_of([0, 1, 2, 3])["input_ids"], batch_of([0, 1, 2, 3])["attention_mask"])
    best, chosen, steps = torch.zeros(()), torch.zeros(4, 12), 200
    for seed in range(steps):
        found = where("gate", 0.25).thinks(model, batch_of([0, 1, 2, 3]), seed)
        assert found.sum(1).tolist() == [3, 2, 1, 3]
        assert torch.equal(where("gate", 0.25).thinks(model, batch_of([1]), seed)[0], found[1])
        chosen += found
        top = scores[0, : LENGTHS[0] - 1].topk(3).indices
        best += found[0, top].sum() / 3
    assert (chosen[0, :11] > 0).all()  # everywhere, once in a while
    assert 1 - EXPLORED < best / steps < 0.9


def test_a_gate_that_is_not_trained_chooses_nothing():
    changes = {"train.thinking.where": "gate"}
    with pytest.raises(UserError, match="train.thinking.where is gate, but train.gate is false"):
        params.load(SHIPPED, changes)
    assert params.load(SHIPPED, changes | {"train.gate": True}).train.gate_share == 0.05


def test_it_learns_where_it_chooses(folder: Path):
    settings = replace(GATED, thinking=replace(GATED.thinking, where="gate"), steps=3)
    log = pd.read_csv(folder / "results/train" / train(folder, settings).name / "steps.csv")
    assert len(log) == 3 and log.notna().all().all()
