"""The release: a folder that transformers loads, and a card that the hub can read and no data can break."""

import json
import os
import re
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.report.card import CardInputs, on_the_hub
from pipeline.report.release import write_release
from pipeline.thought.model import QuietStarForCausalLM
from tests.report import fake_outputs as fake
from tests.thought.tiny import LLAMA

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, untrained, and its tokenizer."""
    folder = tmp_path_factory.mktemp("trained")
    tokenizer = train_tokenizer(["Q: Where does the lemur live?\nA: in trees"], vocabulary=300)
    torch.manual_seed(0)
    base = AutoModelForCausalLM.from_config(AutoConfig.for_model(**LLAMA | {"vocab_size": len(tokenizer)}))
    model = QuietStarForCausalLM.from_base(base, meta_token_ids=[1], thought_tokens=2, lookahead=2, rationales=1)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def about(folder: Path, method: str = "quiet_star") -> CardInputs:
    inputs = fake.write_inputs(folder, method)
    return CardInputs(
        params=inputs.params,
        train_metrics=inputs.train_metrics,
        evaluate_metrics=inputs.evaluate_metrics,
        comparisons=inputs.compare_comparisons,
        cot_metrics=inputs.cot_metrics,
        perplexity_metrics=inputs.perplexity_metrics,
    )


def card(trained: Path, folder: Path, method: str = "quiet_star") -> str:
    write_release(trained, about(folder, method), folder / "release")
    return (folder / "release/README.md").read_text(encoding="utf-8")


def test_the_trained_files_and_a_card(trained: Path, tmp_path: Path):
    card(trained, tmp_path)
    released = {path.name: path.read_bytes() for path in (tmp_path / "release").iterdir()}
    assert set(released) == {path.name for path in trained.iterdir()} | {"README.md"}
    assert all(released[path.name] == path.read_bytes() for path in trained.iterdir())


def test_weights_are_linked_and_nothing_else(trained: Path, tmp_path: Path):
    card(trained, tmp_path)
    shared = {path.name for path in trained.iterdir() if path.samefile(tmp_path / "release" / path.name)}
    assert shared == {WEIGHTS}


def test_weights_are_copied_where_links_do_not_work(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(source, target):
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    card(trained, tmp_path)
    assert not (trained / WEIGHTS).samefile(tmp_path / "release" / WEIGHTS)
    assert (trained / WEIGHTS).read_bytes() == (tmp_path / "release" / WEIGHTS).read_bytes()


def test_the_cards_own_code_loads_the_model_and_writes(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    code = re.search(r"```python\n(.*?)```", card(trained, tmp_path), flags=re.DOTALL)[1]
    exec(code.replace("models/release", str(tmp_path / "release")), {})
    assert capsys.readouterr().out.startswith("Q: What is two and three?\nA:")


def test_the_hub_reads_the_head(trained: Path, tmp_path: Path):
    data = huggingface_hub.ModelCard(card(trained, tmp_path)).data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("transformers", "text-generation", ["quiet-star"])
    assert data.base_model is None and data.datasets is None


def test_base_model_and_data_set_from_the_hub(trained: Path, tmp_path: Path):
    inputs = about(tmp_path)
    changed = (
        fake.PARAMS.read_text().replace("source: microworld", "source: hub").replace("source: scratch", "source: hub")
    )
    inputs.params.write_text(changed.replace("path: null", "path: Qwen/Qwen2.5-0.5B"))
    write_release(trained, inputs, tmp_path / "release")
    text = (tmp_path / "release/README.md").read_text()
    data = huggingface_hub.ModelCard(text).data
    assert data.base_model == "Qwen/Qwen2.5-0.5B" and data.datasets == ["openai/gsm8k"]
    assert "# Quiet-STaR on Qwen2.5-0.5B\n" in text


@pytest.mark.parametrize(
    "name, known",
    [
        ("gpt2", True),
        ("a/b.c-d", True),
        ("/a/b", False),
        ("../a", False),
        ("./a", False),
        ("a/b/c", False),
        ("a\nb", False),
    ],
)
def test_what_can_be_a_name_on_the_hub(name: str, known: bool):
    assert on_the_hub(name) == known


def test_a_local_folder_is_no_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert not on_the_hub("models/mine") and on_the_hub("models/yours")


def test_results_with_intervals_and_n(trained: Path, tmp_path: Path):
    text = card(trained, tmp_path)
    assert r"| gsm8k | accuracy | 9.5% | 10.0% | 90.0% | +80.0 \[+77.0, +83.0\] | p = 0.023 | 1,400 |" in text
    assert r"| gsm8k | base model | +40.0 \[+30.0, +50.0\] | p \< 0.001 | 1 | 1,400 |" in text
    assert r"| gsm8k | maj@8 | 50.0% | 70.0% | +20.0 \[+5.0, +35.0\] | 32 |" in text
    assert r"| loss, nats per token | 1.234 | 1.000 | +0.234 \[+0.200, +0.270\] | 120 |" in text
    assert r"| thought\_tokens | 5 |" in text and "2403.09629" in text
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert sections == ["How to load it", "Training", "Settings", "Results", "Limits", "Citation"]


def test_a_run_without_thoughts_claims_none(trained: Path, tmp_path: Path):
    text = card(trained, tmp_path, "no_thought")
    assert "| gsm8k | accuracy | 9.5% | 10.0% | 1,400 |" in text and "# No thoughts on a small qwen3\n" in text
    assert "with thoughts" not in text and "think=False" not in text and "A thought" not in text
    assert huggingface_hub.ModelCard(text).data.tags == ["quiet-star", "no-thought"]


def test_without_chain_of_thought_or_comparisons(trained: Path, tmp_path: Path):
    inputs = about(tmp_path)
    inputs.cot_metrics.write_text("{}")
    fake.comparisons().head(0).to_csv(inputs.comparisons, index=False)
    write_release(trained, inputs, tmp_path / "release")
    text = (tmp_path / "release/README.md").read_text()
    assert "maj@" not in text and "other ways of training" not in text


def test_what_comes_from_data_is_no_markup(trained: Path, tmp_path: Path):
    inputs = about(tmp_path)
    inputs.evaluate_metrics.write_text(json.dumps({"a|b\n---\n# [x](y) <b> `c` *d*": fake.task(0.1, 0, 1)}))
    write_release(trained, inputs, tmp_path / "release")
    text = (tmp_path / "release/README.md").read_text()
    assert r"| a\|b --- \# \[x\](y) \<b\> \`c\` \*d\* | accuracy |" in text
    assert "<script>" not in text


def test_same_inputs_same_bytes(trained: Path, tmp_path: Path):
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    assert card(trained, tmp_path / "first") == card(trained, tmp_path / "second")
    assert str(tmp_path) not in card(trained, tmp_path / "first")


def test_an_older_release_is_replaced_whole(trained: Path, tmp_path: Path):
    (tmp_path / "release").mkdir()
    (tmp_path / "release/stale.bin").write_text("old")
    card(trained, tmp_path)
    assert not (tmp_path / "release/stale.bin").exists()


def test_nothing_half_written_remains(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="No space"):
        card(trained, tmp_path)
    assert not list(tmp_path.glob("release*"))


def test_no_trained_model(tmp_path: Path):
    with pytest.raises(UserError, match="empty holds no trained model: run `dvc repro train`"):
        write_release(tmp_path / "empty", about(tmp_path), tmp_path / "release")
    assert not (tmp_path / "release").exists()


@pytest.mark.parametrize("name", CardInputs.__dataclass_fields__)
def test_missing_file(trained: Path, tmp_path: Path, name: str):
    inputs = about(tmp_path)
    path = getattr(inputs, name)
    path.unlink()
    with pytest.raises(UserError) as error:
        write_release(trained, inputs, tmp_path / "release")
    assert str(path) in str(error.value) and not (tmp_path / "release").exists()
