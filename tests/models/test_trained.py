"""What is trained of a model, and the folder that holds only that."""

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
from transformers.pytorch_utils import Conv1D

from pipeline.data.spans import SPANS, Spans
from pipeline.errors import UserError
from pipeline.files import digests, write_rows
from pipeline.models.trained import (
    ABOUT,
    LEARNED,
    TENSORS,
    WEIGHTS,
    limit_learning,
    load_trained,
    restore_frozen,
    round_frozen,
    save_trained,
)
from pipeline.params import Lora, Train
from pipeline.thought.model import NO_THOUGHT, PAUSE, QUIET_STAR, QuietStarForCausalLM
from pipeline.training.quiet_star.trainer import STEP_COLUMNS, parameter_groups
from tests.thought.tiny import GPT2, LLAMA, VOCABULARY, error, quiet_star, random_ids
from tests.training.quiet_star.test_trainer import TRAIN, trainer

WHOLE = replace(TRAIN, steps=3)
LORA = replace(WHOLE, adapt="lora", lora=Lora(rank=4, alpha=8.0), saved="learned")
FROZEN = replace(WHOLE, adapt="frozen", saved="learned")
FAMILIES = pytest.mark.parametrize("base", [LLAMA, GPT2], ids=["llama", "gpt2"])
KINDS = pytest.mark.parametrize("settings", [LORA, FROZEN], ids=["lora", "frozen"])
# each method with what it can learn by
ARMS = pytest.mark.parametrize(
    "settings",
    [
        replace(some, method=method)
        for some in (LORA, FROZEN)
        for method in (QUIET_STAR, PAUSE, NO_THOUGHT)
        if (some, method) != (FROZEN, NO_THOUGHT)
    ],
    ids=lambda some: f"{some.adapt}, {some.method}",
)

COMPARED = [*STEP_COLUMNS, "eval_base_loss", "eval_talk_loss"]  # of a row of the log
PHI = LLAMA | {"model_type": "phi"}  # its LM head has a bias


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def spans(tmp_path: Path) -> Spans:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY - 2, (8, 10), generator=generator).tolist()
    write_rows(tmp_path / "spans.arrow", [{"input_ids": row, "length": 10} for row in ids], SPANS)
    return Spans(tmp_path / "spans.arrow", VOCABULARY)


def limited(settings: Train, base: dict = LLAMA) -> QuietStarForCausalLM:
    model = quiet_star(base, method=settings.method)
    limit_learning(model, settings)
    return model


def trained(settings: Train, spans: Spans, base: dict = LLAMA) -> QuietStarForCausalLM:
    model = limited(settings, base)
    trainer(model, spans, settings).run()
    return model.eval()


def tensors(model: QuietStarForCausalLM) -> dict[str, Tensor]:
    """By the names that they have where nothing is adapted."""
    return {name.replace(".base_layer", ""): value for name, value in model.named_parameters()}


@FAMILIES
@ARMS
def test_training_leaves_the_base_as_it_is_and_changes_all_else(base: dict, settings: Train, spans: Spans):
    start, model = quiet_star(base, method=settings.method), trained(settings, spans, base)
    after = tensors(model)
    for name, value in start.base.named_parameters(prefix="base"):
        assert torch.equal(after[name], value), name
    before = tensors(limited(settings, base))
    learned = {name: value for name, value in model.named_parameters() if value.requires_grad}
    still = [name for name, value in learned.items() if torch.equal(before[name], value)]
    assert still == []
    assert any("lora_" in name for name in after) == (settings.adapt == "lora")


def biased(settings: Train, base: dict) -> QuietStarForCausalLM:
    """With biases, where there are any, that show."""
    model = limited(settings, base)
    torch.manual_seed(3)
    for name, parameter in model.base.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return model


@pytest.mark.parametrize("base", [LLAMA, GPT2, PHI], ids=["llama", "gpt2", "phi"])
@ARMS
def test_matrices_that_are_kept_in_bfloat16_teach_the_same_bits(base: dict, settings: Train, spans: Spans):
    settings, found = replace(settings, precision="bfloat16"), []
    for model in (biased(settings, base), biased(settings, base)):
        if found:
            round_frozen(model)
        log = [{name: row[name] for name in COMPARED if name in row} for row in trainer(model, spans, settings).run()]
        found.append((log, {name: value for name, value in model.named_parameters() if value.requires_grad}))
    (log, learned), (other_log, other) = found
    assert log == other_log and sum("grad_norm" in row for row in log) == settings.steps
    assert learned.keys() == other.keys() and all(torch.equal(learned[name], other[name]) for name in learned)


@FAMILIES
@KINDS
def test_only_matrices_that_do_not_learn_are_kept_in_bfloat16(base: dict, settings: Train):
    """LLaMA's LM head is one of them, GPT-2's is its embedding."""
    plain, model = limited(settings, base), limited(settings, base)
    round_frozen(model)
    rounded = {
        id(module.weight)
        for module in model.base.modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and not module.weight.requires_grad
    } - {id(model.get_input_embeddings().weight)}
    for (name, weights), before in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert weights.dtype == (torch.bfloat16 if id(weights) in rounded else torch.float32), name
        assert torch.equal(weights, before.to(weights.dtype)), name
    assert len(rounded) == (15 if base is LLAMA else 8)


@FAMILIES
@KINDS
def test_what_was_kept_in_bfloat16_is_as_before_in_the_end(base: dict, settings: Train):
    model, before = limited(settings, base), limited(settings, base).state_dict()
    round_frozen(model)
    restore_frozen(model, quiet_star(base).base)
    after = model.state_dict()
    assert after.keys() == before.keys() and {value.dtype for value in after.values()} == {torch.float32}
    assert all(torch.equal(value, before[name]) for name, value in after.items())


@ARMS
def test_the_optimizer_has_only_what_learns(settings: Train):
    model = limited(settings)
    listed = [parameter for group in parameter_groups(model, settings) for parameter in group["params"]]
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(map(id, listed)) == sorted(map(id, learns)) and len(learns) < len(list(model.parameters()))


def saved(model: QuietStarForCausalLM, settings: Train, base: dict, folder: Path) -> Path:
    """The folder with the trained model; that of its base model is beside it."""
    quiet_star(base, method=settings.method).base.save_pretrained(folder / "base")
    (folder / "trained").mkdir()
    read = digests(folder / "base", WEIGHTS)
    save_trained(copy.deepcopy(model), settings, folder / "base", read, folder / "trained")
    return folder / "trained"


def predictions(model: QuietStarForCausalLM) -> Tensor:
    with torch.no_grad():
        return model(random_ids(2, 9)).logits


@FAMILIES
@ARMS
def test_a_folder_with_what_was_learned_is_read_as_the_whole_one(base, settings, spans: Spans, tmp_path: Path):
    model = trained(settings, spans, base)
    beside = predictions(model)
    small = load_trained(saved(model, settings, base, tmp_path / "small"))
    whole = load_trained(saved(model, replace(settings, saved="whole"), base, tmp_path / "whole"))
    assert not small.training
    assert small.state_dict().keys() == whole.state_dict().keys()
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in small.state_dict().items())
    assert error(predictions(small), predictions(whole)) < 1e-6  # sums depend on where weights lie in memory
    assert error(predictions(small), beside) < 1e-5


@KINDS
def test_it_holds_what_was_learned_and_no_more(settings: Train, spans: Spans, tmp_path: Path):
    model = trained(settings, spans)
    folder = saved(model, settings, LLAMA, tmp_path)
    assert {path.name for path in folder.iterdir()} == {"config.json", *LEARNED}
    expected = {name for name, value in model.named_parameters() if value.requires_grad}
    assert load_file(folder / TENSORS).keys() == expected
    about = json.loads((folder / ABOUT).read_text())
    assert about["base"] == "../base" and str(tmp_path) not in (folder / ABOUT).read_text()
    assert about["lora"] == ({"rank": 4, "alpha": 8.0, "modules": None} if settings is LORA else None)


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())


@KINDS
def test_it_is_small(settings: Train, tmp_path: Path):
    base = LLAMA | {"vocab_size": 4000, "num_hidden_layers": 8, "hidden_size": 64, "intermediate_size": 256}
    model = limited(settings, base)
    small = saved(model, settings, base, tmp_path / "small")
    whole = saved(model, replace(settings, saved="whole"), base, tmp_path / "whole")
    assert size(small) < 0.2 * size(whole)


def test_transformers_does_not_take_it_for_a_whole_model(tmp_path: Path):
    folder = saved(limited(LORA), LORA, LLAMA, tmp_path)
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        AutoModelForCausalLM.from_pretrained(folder)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What was learned by adapters, its base model beside it."""
    return saved(limited(LORA), LORA, LLAMA, tmp_path)


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load_trained(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)
    return str(caught.value)


def test_without_its_base_model(folder: Path):
    base = folder.parent / "base"
    shutil.rmtree(base)
    assert f"must be in {base}" in refused(folder)


@pytest.mark.parametrize("other", [LLAMA, LLAMA | {"hidden_size": 32}, LLAMA | {"num_hidden_layers": 3}, GPT2])
def test_on_another_base_model(other: dict, folder: Path):
    """Also on one of the same shape, whose weights would take the adapters without a word."""
    quiet_star(other, seed=5).base.save_pretrained(folder.parent / "base")
    assert "was trained on other weights than those in" in refused(folder)


@pytest.mark.parametrize("base", [{"num_hidden_layers": 3}, {"rope_parameters": 3}, {"hidden_size": "x"}], ids=str)
def test_with_another_configuration(base: dict, folder: Path):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"base": config["base"] | base}))
    assert "does not fit its base model" in refused(folder)


@pytest.mark.parametrize("lora", [{"rank": 2}, {"modules": ["q_proj"]}, {"modules": ["query"]}, {"ranks": 4}], ids=str)
def test_with_other_adapters_than_it_says(lora: dict, folder: Path):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | {"lora": about["lora"] | lora}))
    assert "does not fit its base model" in refused(folder)


def test_with_adapters_of_which_it_does_not_tell(folder: Path):
    about = json.loads((folder / ABOUT).read_text())
    (folder / ABOUT).write_text(json.dumps(about | {"lora": None}))
    assert "it has adapters, of which learned.json does not tell" in refused(folder)


WITHOUT_DIGESTS = '{"base": "../base", "digests": null, "lora": null}'
WITHOUT_BASE = '{"base": 3, "digests": {}, "lora": null}'


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"base": "../base"}', WITHOUT_DIGESTS, WITHOUT_BASE])
def test_broken_about(text: str, folder: Path):
    (folder / ABOUT).write_text(text)
    assert f"{ABOUT} is missing or broken" in refused(folder)


@pytest.mark.parametrize("content", [None, b"", b"broken"])
def test_broken_tensors(content: bytes | None, folder: Path):
    (folder / TENSORS).unlink()
    if content is not None:
        (folder / TENSORS).write_bytes(content)
    refused(folder)


def test_a_layer_that_there_is_not():
    with pytest.raises(UserError, match=r"train\.lora\.modules: no linear layer of the decoder is called query"):
        limited(replace(LORA, lora=Lora(4, 8.0, ["query"])))


def test_without_peft(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"train\.adapt is lora, which needs peft: pip install peft"):
        limited(LORA)
    assert "which needs peft: pip install peft" in refused(folder)
    for settings in (FROZEN, WHOLE):
        one = tmp_path / settings.adapt
        assert load_trained(saved(limited(settings), replace(settings, saved="whole"), LLAMA, one))
