"""The model as a `PreTrainedModel`: made, saved, loaded (its code too), in other precisions, in training mode."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, Trainer, TrainingArguments
from transformers.dynamic_module_utils import get_relative_import_files

import pipeline.thought
from pipeline.thought.decoder import check_decoder
from pipeline.thought.methods import NO_THOUGHT, PAUSE, QUIET_STAR
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import DEFAULT_ENGINE, Engine
from pipeline.thought.views import NAME, TextView
from tests.thought.tiny import (
    ALL_METHODS,
    ARCHITECTURES,
    END,
    FOUR_BASES,
    GEMMA2,
    GPT2,
    LLAMA,
    METHODS,
    SIZES,
    START,
    TOKENS,
    base_model,
    error,
    given_thoughts,
    gradients,
    quiet_star,
    random_ids,
    texts,
)


def from_base(base: dict, method: str = QUIET_STAR, **options: object) -> QuietStarForCausalLM:
    settings = {"thought_tokens": 3, "lookahead": 2, "start_token_id": START, "end_token_id": END, "method": method}
    return QuietStarForCausalLM.from_base(base_model(base, **options), [3, 5], **settings).eval()


@ALL_METHODS
@FOUR_BASES
def test_saved_and_loaded_it_is_the_same(name, method, tmp_path):
    tied, ids = name in ("llama", "gpt2"), random_ids(2, 6)
    model = quiet_star({**ARCHITECTURES[name], "tie_word_embeddings": tied}, method=method).eval()
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "generation_config.json", "model.safetensors"}
    assert json.loads((tmp_path / "config.json").read_text())["method"] == method
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is QuietStarForCausalLM and loaded.config.method == method
    assert loaded.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    assert (loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight) == tied
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert torch.equal(loaded(ids, labels=ids).loss, model(ids, labels=ids).loss)
    assert torch.equal(loaded.generate(ids, max_new_tokens=3), model.generate(ids, max_new_tokens=3))


def test_a_model_from_before_there_were_methods_is_quiet_star(tmp_path):
    quiet_star(LLAMA).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["method"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).method == QUIET_STAR


def test_the_saved_configuration_names_no_path_of_this_machine(tmp_path):
    base_model(LLAMA).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    QuietStarForCausalLM.from_base(base, [3]).save_pretrained(tmp_path / "once")
    QuietStarForCausalLM.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for folder in ("once", "twice"):
        text = (tmp_path / folder / "config.json").read_text()
        assert str(tmp_path) not in text
        assert json.loads(text)["base"]["model_type"] == "llama"


@pytest.mark.parametrize("name", ARCHITECTURES)
@torch.no_grad()
def test_untrained_it_predicts_and_writes_as_the_base(name):
    """By every method; some bases have untied embeddings."""
    base = {**ARCHITECTURES[name], "tie_word_embeddings": name not in ("mistral", "gemma2", "gpt_neox")}
    plain, ids = base_model(base, attn_implementation="eager").eval(), random_ids(2, 6)
    other, expected = from_base(base, NO_THOUGHT), plain(ids, use_cache=False).logits
    for method in METHODS:
        model = from_base(base, method)
        output = model(ids)
        assert torch.equal(output.logits, output.base_logits) and not output.weight.any()
        assert torch.equal(output.logits, other(ids).logits)
        assert error(output.logits, expected) < 1e-5
        assert torch.equal(model.generate(ids, max_new_tokens=4), other.generate(ids, max_new_tokens=4))
        loss = other(ids, labels=ids).loss.item()
        assert model(ids, labels=ids).losses.base.item() == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("base", [LLAMA, ARCHITECTURES["gemma"]], ids=["llama", "gemma, whose embeddings are scaled"])
@ALL_METHODS
def test_what_a_method_adds_starts_as_the_mean_embedding(method, base):
    model = from_base(base, method)
    with torch.no_grad():
        expected = model.get_input_embeddings()(torch.tensor([3, 5])).mean(0)
    shapes = {QUIET_STAR: [(16,), (16,)], PAUSE: [(16,), (16,), (3, 16)], NO_THOUGHT: []}[method]
    assert [tuple(parameter.shape) for parameter in model.meta_tokens()] == shapes
    for parameter in model.meta_tokens():
        torch.testing.assert_close(parameter.data * model.config.meta_token_scale, expected.expand_as(parameter))
    assert len({parameter.data_ptr() for parameter in model.meta_tokens()}) == len(shapes)


def test_a_thought_ends_by_the_last_meta_token_or_the_end_token():
    config = from_base(LLAMA).config
    assert (config.ending_token_ids, config.endings, config.banned_in_thoughts) == ([5, END], [], [START, END])
    ends = QuietStarConfig.from_dict(config.to_dict() | {"thoughts_end": True})
    assert (ends.endings, ends.banned, ends.banned_in_thoughts) == ([5, END], [START, END], [START])
    for some in ([], [START], ["4"]):
        with pytest.raises(ValueError, match="ending_token_ids"):
            QuietStarConfig(base=LLAMA, start_token_id=START, thoughts_end=True, ending_token_ids=some)


def test_a_new_model_has_the_initial_weights_of_its_base():
    """Its own initialisation must not run over the base's."""
    model = QuietStarForCausalLM(QuietStarConfig(base={**LLAMA, "vocab_size": 500}))
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert model.mixing_head[0].weight.std() > 0
    assert not model.mixing_head[-1].weight.any()


@ALL_METHODS
@pytest.mark.parametrize(
    ("base", "engine"), [(LLAMA, DEFAULT_ENGINE), (GEMMA2, Engine("blocked", 4)), (GPT2, Engine("blocked", 4))]
)
def test_bfloat16_and_autocast_are_close_to_float32(base, engine, method):
    """Losses are float32, gradients of the parameters' dtype."""
    model, (ids, mask, labels) = quiet_star(base, method=method), texts("right")
    half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    given = given_thoughts() if method == QUIET_STAR else None
    options = {"labels": labels, "thought_ids": given, "engine": engine}
    expected = model(ids, mask, **options).losses
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lowered = model(ids, mask, **options)
    for each, output in ((model, lowered), (half, half(ids, mask, **options))):
        found = gradients(each, output.loss)
        assert {gradient.dtype for gradient in found.values()} == {each.dtype}
        assert all(gradient.isfinite().all() for gradient in found.values())
        losses = [output.losses.base_nll, output.losses.talk_nll, output.losses.reward, output.losses.policy]
        assert {loss.dtype for loss in losses} == {torch.float32}
        assert error(output.losses.base_nll, expected.base_nll) < 0.05
    assert half.generate(ids, max_new_tokens=2).shape == (2, TOKENS + 2)


def test_attention_is_given_one_dtype_and_left_alone_by_autocast(monkeypatch):
    """Rotary embeddings give float32 queries and keys under autocast, and an autograd function must not be autocast."""
    seen, attend = [], TextView.attend

    def spy(self: TextView, layer: int, *tensors: torch.Tensor) -> torch.Tensor:
        seen.append((torch.is_autocast_enabled("cpu"), {tensor.dtype for tensor in tensors[:3]}))
        return attend(self, layer, *tensors)

    monkeypatch.setattr(TextView, "attend", spy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        quiet_star(LLAMA)(random_ids(2, 6))
    assert seen == [(False, {torch.bfloat16})] * 2


def test_a_bfloat16_model_has_exact_rotary_frequencies_and_is_loaded_in_one_dtype(tmp_path):
    model = from_base(LLAMA, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = from_base(LLAMA).base.model.rotary_emb.inv_freq
    assert torch.equal(model.base.model.rotary_emb.inv_freq, expected)
    model.save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
        assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


OPT = {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 4, "num_attention_heads": 4, "ffn_dim": 24}
OPT |= {"vocab_size": 23, "init_std": 0.3, "max_position_embeddings": 64}
RANDOM = {
    "gpt2": {**GPT2, "attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "llama": {**LLAMA, "attention_dropout": 0.5},
    "gpt_neox": {**ARCHITECTURES["gpt_neox"], "attention_dropout": 0.5, "hidden_dropout": 0.5},
    "opt": {"model_type": "opt", **OPT, "dropout": 0.5, "layerdrop": 0.5},
    "mixtral": {"model_type": "mixtral", **SIZES, "num_local_experts": 2, "router_jitter_noise": 0.9},
}


@pytest.mark.parametrize("base", RANDOM.values(), ids=RANDOM.keys())
def test_training_mode_adds_no_noise(base):
    model, ids = quiet_star(base).train(), random_ids(2, 6)
    first, second = (model(ids, labels=ids, sampling=Sampling()) for _ in range(2))
    assert torch.equal(first.thoughts.ids, second.thoughts.ids)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.loss, model.eval()(ids, labels=ids, sampling=Sampling()).loss)


def test_training_samples_and_prediction_is_greedy_unless_thoughts_are_given():
    model, ids = quiet_star(LLAMA).eval(), random_ids(2, 6)
    with torch.no_grad():
        training, prediction = model(ids, labels=ids), model(ids)
        assert torch.equal(training.thoughts.ids, model(ids, labels=ids, sampling=Sampling(1.0, 0)).thoughts.ids)
        assert torch.equal(prediction.logits, model(ids, sampling=Sampling(0.0, 3)).logits)
        given = model(ids, thought_ids=prediction.thoughts.ids)
        other = model(ids, thought_ids=random_ids(2, 1, 6, 3)).logits
    assert training.thoughts.ids.shape == training.weight.shape == (2, 2, 6, 3)
    assert prediction.thoughts.ids.shape == (2, 1, 6, 3) and prediction.weight.shape == (2, 6)
    torch.testing.assert_close(given.logits, prediction.logits, atol=1e-5, rtol=1e-5)
    assert given.thoughts is None
    assert error(other, prediction.logits) > 1e-3


def test_an_ordinary_training_loop_draws_new_thoughts_at_every_step(monkeypatch):
    """Which torch.manual_seed repeats, and which differ between processes of one seed. Measuring draws from nothing."""
    model, ids = quiet_star(LLAMA), random_ids(2, 6)

    def steps(count: int = 2) -> list[torch.Tensor]:
        torch.manual_seed(7)
        return [model(ids, labels=ids).thoughts.ids for _ in range(count)]

    (first, second), again = steps(), steps()
    assert not torch.equal(first, second)
    assert torch.equal(first, again[0]) and torch.equal(second, again[1])
    state = torch.get_rng_state()
    with torch.no_grad():
        model(ids, labels=ids)
    model(ids)
    model(ids, labels=ids, sampling=Sampling(seed=3))
    assert torch.equal(state, torch.get_rng_state())
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    assert not torch.equal(first, steps(1)[0])


def test_the_hf_trainer_resumes_with_the_thoughts_of_an_uninterrupted_run(tmp_path: Path):
    data = [{"input_ids": text, "labels": text} for text in random_ids(8, 6)]
    options = {"max_steps": 4, "save_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 0.01}
    arguments = TrainingArguments(tmp_path, **options, use_cpu=True, report_to=[], disable_tqdm=True)
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        trainer = Trainer(quiet_star(LLAMA), arguments, train_dataset=data)
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append(trainer.model.state_dict())
    whole, resumed = found
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("attention", ["sdpa", "eager", {"": "sdpa"}])
def test_attention_that_would_break_thoughts_is_refused(attention, tmp_path):
    """However it is asked for; the model stays as it is. A second model of the configuration can be made."""
    model, ids = quiet_star(LLAMA).eval(), random_ids(2, 6)
    model.save_pretrained(tmp_path)
    before = model(ids).logits
    for ask in (
        model.set_attn_implementation,
        lambda other: AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=other),
        lambda other: QuietStarForCausalLM.from_base(base_model(LLAMA), [3], attn_implementation=other),
    ):
        with pytest.raises(ValueError, match=r"^attn_implementation is [^\n]* through 'quiet_star' only: leave it out"):
            ask(attention)
    assert torch.equal(model(ids).logits, before)
    model.set_attn_implementation(NAME)
    check_decoder(model.base)
    again = AutoModelForCausalLM.from_config(model.config)
    again.load_state_dict(model.state_dict())
    assert torch.equal(again.eval()(ids).logits, before)


FOLDER = Path(pipeline.thought.__file__).parent
LOAD = """
import sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], trust_remote_code=True).eval()
assert not any(name.split(".")[0] == "pipeline" for name in sys.modules)
written = model.generate(torch.load("ids.pt"), max_new_tokens=4, think="gate", return_dict_in_generate=True)
torch.save([model(torch.load("ids.pt")).logits.detach(), written.sequences, written.thought_share], "found.pt")
"""


def test_the_loader_follows_every_import():
    found = {Path(path).name for path in get_relative_import_files(str(FOLDER / "model.py"))} | {"model.py"}
    assert found == {path.name for path in FOLDER.glob("*.py")} - {"__init__.py"}
    assert not any(
        "import pipeline" in path.read_text() or "from pipeline" in path.read_text() for path in FOLDER.glob("*.py")
    )


@pytest.mark.slow
def test_a_folder_with_the_package_loads_without_this_project(tmp_path: Path):
    """With a gate, which decides where it thinks when it writes."""
    model, ids = quiet_star(LLAMA, gate=True).eval(), random_ids(2, 6)
    model.config.gate_threshold = model.gate_scores(ids).median().item()
    model.save_pretrained(tmp_path / "model")
    for path in FOLDER.glob("*.py"):
        shutil.copy(path, tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    config["auto_map"] = {"AutoConfig": "model.QuietStarConfig", "AutoModelForCausalLM": "model.QuietStarForCausalLM"}
    (tmp_path / "model/config.json").write_text(json.dumps(config))
    torch.save(ids, tmp_path / "ids.pt")
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""}
    subprocess.run([sys.executable, "-c", LOAD, "model"], cwd=tmp_path, env=environment, check=True)
    logits, sequences, share = torch.load(tmp_path / "found.pt")
    torch.testing.assert_close(logits, model(ids).logits.detach())
    written = model.generate(ids, max_new_tokens=4, think="gate", return_dict_in_generate=True)
    assert torch.equal(sequences, written.sequences) and 0 < share == written.thought_share < 1
