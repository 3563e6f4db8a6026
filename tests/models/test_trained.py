"""Which weights are trained, and the folders of trained models."""

import copy
import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from pipeline.data.spans import Spans
from pipeline.errors import UserError
from pipeline.files import digests
from pipeline.models import trained
from pipeline.params import Lora, Train
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.training.quiet_star.trainer import STEP_COLUMNS, parameter_groups
from tests.models.test_adapters import learned
from tests.thought.tiny import GPT2, LLAMA, error, quiet_star, random_ids
from tests.training.quiet_star.test_trainer import TRAIN, some_spans, trainer

WHOLE = replace(TRAIN, steps=3)
LORA = replace(WHOLE, adapt="lora", lora=Lora(rank=4, alpha=8.0), saved="learned")
FROZEN = replace(WHOLE, adapt="frozen", saved="learned")
PHI = LLAMA | {"model_type": "phi"}  # its LM head has a bias
ARMS = [
    (LORA, QUIET_STAR, LLAMA),
    (LORA, PAUSE, GPT2),
    (LORA, NO_THOUGHT, PHI),
    (FROZEN, QUIET_STAR, GPT2),
    (FROZEN, PAUSE, PHI),
]
COMPARED = [*STEP_COLUMNS, "eval_base_loss", "eval_talk_loss"]  # of a row of the log


@pytest.fixture
def spans(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Spans:
    monkeypatch.chdir(tmp_path)  # where training writes
    return some_spans(tmp_path / "spans.arrow")


def limited(settings: Train, base: dict = LLAMA, method: str = QUIET_STAR) -> QuietStarForCausalLM:
    model = quiet_star(base, method=method)
    trained.limit_learning(model, settings)
    return model


def saved(model: QuietStarForCausalLM, settings: Train, base: dict, folder: Path) -> Path:
    """Write the trained model to a folder, and its base model to another beside it."""
    quiet_star(base, method=model.config.method).base.save_pretrained(folder / "base")
    (folder / "trained").mkdir()
    read = digests(folder / "base", trained.WEIGHTS)
    trained.save_trained(copy.deepcopy(model), settings, folder / "base", read, folder / "trained")
    return folder / "trained"


@torch.no_grad()
def predictions(model: QuietStarForCausalLM) -> Tensor:
    return model(random_ids(2, 9)).logits


@pytest.mark.parametrize(("settings", "method", "base"), ARMS)
def test_training_changes_what_learns_only_and_both_folders_hold_it(settings, method, base, spans, tmp_path: Path):
    start = quiet_star(base, method=method)
    before, model = limited(settings, base, method), limited(settings, base, method)
    optimized = [id(parameter) for group in parameter_groups(model, settings) for parameter in group["params"]]
    assert sorted(optimized) == sorted(map(id, learned(model).values()))
    trainer(model, spans, settings).run()
    model.eval()
    after = {name.replace(".base_layer", ""): value for name, value in model.named_parameters()}
    for name, value in start.base.named_parameters(prefix="base"):
        assert torch.equal(after[name], value), name
    assert [n for n, value in learned(model).items() if torch.equal(learned(before)[n], value)] == []
    assert any("lora_" in name for name in after) == (settings.adapt == "lora")

    folder = saved(model, settings, base, tmp_path / "small")
    assert {path.name for path in folder.iterdir()} == {"config.json", *trained.LEARNED}
    assert load_file(folder / trained.TENSORS).keys() == learned(model).keys()
    about = json.loads((folder / trained.ABOUT).read_text())
    assert about["base"] == "../base" and str(tmp_path) not in (folder / trained.ABOUT).read_text()
    lora = {"rank": 4, "alpha": 8.0, "modules": None}
    assert about["lora"] == (lora if settings.adapt == "lora" else None)

    small = trained.load_trained(folder)
    whole = trained.load_trained(saved(model, replace(settings, saved="whole"), base, tmp_path / "whole"))
    assert not small.training and small.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in small.state_dict().items())
    assert error(predictions(small), predictions(whole)) < 1e-6  # sums depend on where weights lie in memory
    assert error(predictions(small), predictions(model)) < 1e-5


@pytest.mark.parametrize(
    ("settings", "method", "base"),
    [ARMS[0], *(pytest.param(*arm, marks=pytest.mark.slow) for arm in ARMS[1:4]), ARMS[4]],
)
def test_training_on_matrices_in_bfloat16_gives_the_same_bits(settings: Train, method, base: dict, spans: Spans):
    settings, found = replace(settings, precision="bfloat16"), []
    for rounded in (False, True):
        model = limited(settings, base, method)
        torch.manual_seed(3)
        for name, parameter in model.base.named_parameters():
            if name.endswith("bias"):
                torch.nn.init.normal_(parameter)  # so that they show
        if rounded:
            trained.round_frozen(model)
        log = [{name: row[name] for name in COMPARED if name in row} for row in trainer(model, spans, settings).run()]
        found.append((log, learned(model)))
    (log, weights), (other_log, other) = found
    assert log == other_log and sum("grad_norm" in row for row in log) == settings.steps
    assert weights.keys() == other.keys() and all(torch.equal(weights[name], other[name]) for name in weights)


@pytest.mark.parametrize(("settings", "base", "count"), [(LORA, LLAMA, 15), (FROZEN, GPT2, 8)])
def test_only_frozen_matrices_are_rounded_and_restored(settings: Train, base: dict, count: int):
    """LLaMA's LM head is one of them; GPT-2's is its embedding, which is not."""
    plain, model = limited(settings, base), limited(settings, base)
    trained.round_frozen(model)
    rounded = [weights for weights in model.parameters() if weights.dtype == torch.bfloat16]
    assert len(rounded) == count and all(weights.ndim == 2 and not weights.requires_grad for weights in rounded)
    assert model.get_input_embeddings().weight.dtype == torch.float32
    trained.restore_frozen(model, quiet_star(base).base)
    before, after = plain.state_dict(), model.state_dict()
    assert after.keys() == before.keys() and {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved(limited(LORA), LORA, LLAMA, tmp_path)


def refused(folder: Path, message: str) -> None:
    """Reading the folder ends with this message, in one line that names the folder."""
    with pytest.raises(UserError) as caught:
        trained.load_trained(folder)
    assert message in str(caught.value) and str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_or_another_base_model_is_refused(folder: Path):
    """Even one of the same shape, whose weights would take the adapters; transformers sees no whole model."""
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)
    base = folder.parent / "base"
    for other in (LLAMA, GPT2):
        quiet_star(other, seed=5).base.save_pretrained(base)
        refused(folder, "was trained on other weights than those in")
    shutil.rmtree(base)
    refused(folder, f"must be in {base}")


def test_another_configuration_other_adapters_and_broken_files_are_refused(folder: Path):
    config, about = (json.loads((folder / name).read_text()) for name in ("config.json", trained.ABOUT))
    for base, message in (
        ({"num_hidden_layers": 3}, "are not those of its config.json: base.model.layers.2."),
        ({"hidden_size": 32}, "are not those of its config.json: "),
        ({"hidden_size": "x"}, "cannot be read"),
    ):
        (folder / "config.json").write_text(json.dumps(config | {"base": config["base"] | base}))
        refused(folder, message)
    (folder / "config.json").write_text(json.dumps(config))
    for lora in ({"rank": 2}, {"modules": ["q_proj"]}, {"modules": ["query"]}, {"ranks": 4}, None):
        (folder / trained.ABOUT).write_text(json.dumps(about | {"lora": lora and about["lora"] | lora}))
        refused(folder, "cannot be read: ")
    (folder / trained.ABOUT).write_text(json.dumps(about))
    (folder / trained.TENSORS).write_bytes((folder / trained.TENSORS).read_bytes()[:-8])
    refused(folder, "cannot be read: ")
    (folder / trained.TENSORS).unlink()
    refused(folder, "cannot be read: ")
    for text in ("", "[]", '{"base": "../base"}'):
        (folder / trained.ABOUT).write_text(text)
        refused(folder, f"{trained.ABOUT} is missing or broken")


def test_missing_peft_is_told(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    for needs_peft in (lambda: limited(LORA), lambda: trained.load_trained(folder)):
        with pytest.raises(UserError, match=r"train\.adapt is lora\), which needs peft: pip install peft"):
            needs_peft()
    for settings in (FROZEN, WHOLE):
        one = tmp_path / settings.adapt
        assert trained.load_trained(saved(limited(settings), replace(settings, saved="whole"), LLAMA, one))
