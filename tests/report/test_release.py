"""The release: a folder that transformers loads, and a card that the hub can read and no data can break."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
import torch
import yaml
from fake_outputs import HOSTILE, HUB_PARAMS, arms, comparisons, seeds, write, write_run
from transformers import AutoTokenizer

from pipeline.models.trained import load_trained
from pipeline.plan.known import KNOWN
from pipeline.report.card import LICENCES, model_card, on_the_hub
from pipeline.report.release import AUTO_MAP, CODE, write_release

WEIGHTS = "model.safetensors"


@pytest.fixture
def trained(finished: Path) -> Path:
    return finished / "models/trained/quiet_star-1"


def release(trained: Path, run: Path) -> Path:
    write_release(trained, run / "params.yaml", run / "results", run / "release")
    return run / "release"


def card(run: Path) -> str:
    return model_card(run / "params.yaml", run / "results")


def test_the_licences_of_the_presets_models_are_known():
    assert yaml.safe_load(KNOWN.read_text()).keys() <= LICENCES.keys()


def test_the_trained_files_and_a_card(trained: Path, run: Path):
    """Weights are hard links, the others copies; the code and metrics lie beside them, nothing of an older one."""
    (run / "release").mkdir()
    (run / "release/stale.bin").write_text("old")
    out = release(trained, run)
    released = {path.name: path.read_bytes() for path in out.iterdir()}
    files = {path.name: path.read_bytes() for path in trained.iterdir()}
    code = {path.name: path.read_bytes() for path in CODE.glob("*.py") if path.name != "__init__.py"}
    metrics = (run / "results/summary.json").read_bytes()
    config, own = (json.loads(some.pop("config.json")) for some in (released, dict(files)))
    assert config == own | {"auto_map": AUTO_MAP}
    expected = files | code | {"README.md": card(run).encode(), "metrics.json": metrics}
    assert released == {name: expected[name] for name in expected if name != "config.json"}
    assert {name for name in files if (trained / name).samefile(out / name)} == {WEIGHTS}


def test_weights_are_copied_where_links_do_not_work(trained: Path, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "link", Mock(side_effect=OSError(18, "Invalid cross-device link")))
    out = release(trained, run)
    assert not (trained / WEIGHTS).samefile(out / WEIGHTS)
    assert (trained / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()


def test_the_cards_own_code_loads_the_model_and_writes(trained: Path, run: Path, capsys: pytest.CaptureFixture):
    out = release(trained, run)
    code = re.search(r"```python\n(.*?)```", card(run), flags=re.DOTALL)[1]
    exec(code.replace("models/release", str(out)), {})
    assert capsys.readouterr().out.startswith("Q: What is two and three?\nA:")


ALONE = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline
folder = sys.argv[1]
model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
ids = torch.load("ids.pt")
torch.manual_seed(0)
sampled = model.generate(ids, max_new_tokens=4, do_sample=True, num_return_sequences=2)
write = pipeline("text-generation", model=folder, trust_remote_code=True)
text = write("Q: What", max_new_tokens=4, do_sample=False)[0]["generated_text"]
assert not any(name.split(".")[0] in ("stages", "dvc", "datasets") for name in sys.modules)
assert "pipeline" not in sys.modules
torch.save([model(ids).logits.detach(), model.generate(ids, max_new_tokens=4), sampled, text], "found.pt")
"""


@pytest.mark.slow
def test_it_stands_alone(trained: Path, run: Path, tmp_path: Path):
    """In a process without this project, by its own code: the same logits, the same texts, with torch's seed too."""
    out, ids = release(trained, run), torch.tensor([[5, 6, 7, 8]])
    torch.save(ids, tmp_path / "ids.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", ALONE, str(out)], cwd=tmp_path, env=environment, check=True)
    logits, written, sampled, text = torch.load(tmp_path / "found.pt")
    model, tokenizer = load_trained(trained), AutoTokenizer.from_pretrained(trained)
    torch.testing.assert_close(logits, model(ids).logits.detach())
    assert torch.equal(written, model.generate(ids, max_new_tokens=4))
    torch.manual_seed(0)
    assert torch.equal(sampled, model.generate(ids, max_new_tokens=4, do_sample=True, num_return_sequences=2))
    prompt = tokenizer("Q: What", return_tensors="pt")
    assert text == tokenizer.decode(model.generate(**prompt, max_new_tokens=4)[0], skip_special_tokens=True)


def test_results_with_intervals_and_n(run: Path):
    text = card(run)
    assert r"| Quiet-STaR | 90.0% \[80.0%, 95.0%\] | 90.0% \[80.0%, 95.0%\] |" in text
    assert "- On gsm8k the claim holds: Quiet-STaR answers more questions right than training without" in text
    assert "so the harm is at most +0.030" in text and "1,400 questions in 700 groups" in text
    assert r"| gsm8k, maj@8 | 50.0% | 70.0% | +20.0 \[+5.0, +35.0\], p = 0.016 | 32 | 8 |" in text
    assert r"| thought\_tokens | " in text and "2403.09629" in text
    sections = re.findall(r"^## (.*)$", text, flags=re.MULTILINE)
    assert sections == ["How to load it", "Training", "Settings", "Results", "Limits", "Citation"]
    assert "A thought comes before every token" in text and "explains no answer" in text


def test_the_hub_reads_the_head(run: Path):
    data = huggingface_hub.ModelCard(card(run)).data
    assert (data.library_name, data.pipeline_tag, data.tags) == ("transformers", "text-generation", ["quiet-star"])
    assert data.base_model is None and data.datasets is None and data.license == "apache-2.0"
    assert "weights and code are under Apache 2.0" in card(run)

    (run / "params.yaml").write_text(HUB_PARAMS.replace("path: null", "path: Qwen/Qwen2.5-0.5B"))
    data = huggingface_hub.ModelCard(card(run)).data
    assert data.base_model == "Qwen/Qwen2.5-0.5B" and data.datasets == ["openai/gsm8k"] and data.license is None
    assert "apply, Qwen/Qwen2.5-0.5B (apache-2.0), openai/gsm8k (mit). The Python" in card(run)
    assert "# Quiet-STaR on Qwen2.5-0.5B\n" in card(run)


def test_a_run_without_thoughts_claims_none(tmp_path: Path):
    text = card(write_run(tmp_path, "no_thought"))
    assert "# No thoughts on a small qwen3\n" in text and "the claim" not in text
    assert "| gsm8k, maj@8 | 50.0% | 32 | 8 |" in text
    assert "with thoughts" not in text and "think=False" not in text and "A thought" not in text
    assert huggingface_hub.ModelCard(text).data.tags == ["quiet-star", "no-thought"]


def test_without_chain_of_thought_or_comparisons(run: Path):
    write(run, "chain_of_thought/metrics.json", {})
    write(run, "compare/comparisons.csv", comparisons().head(0))
    assert "maj@" not in card(run) and "On gsm8k the claim is not tested: Quiet-STaR was not compared" in card(run)


def test_what_comes_from_data_is_no_markup(run: Path):
    names = {"gsm8k": "a|b\n---\n# [x](y) <b> `c` *d*", "commonsense_qa": HOSTILE}
    write(run, "compare/figures.csv", arms().replace(names))
    write(run, "compare/seeds.csv", seeds().replace(names))
    assert r"| arm | a\|b --- \# \[x\](y) \<b\> \`c\` \*d\* |" in card(run)
    assert "<script>" not in card(run)


def test_what_can_be_a_name_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "models/mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = ("gpt2", "a/b.c-d", "models/yours", "/a/b", "../a", "./a", "a/b/c", "a\nb", "models/mine")
    assert [name for name in names if on_the_hub(name)] == ["gpt2", "a/b.c-d", "models/yours"]
