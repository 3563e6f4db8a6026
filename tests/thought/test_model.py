"""The model as a `PreTrainedModel`: made from a base, saved, loaded, in other precisions, in training mode."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.thought.views import TextView
from tests.thought.tiny import (
    ARCHITECTURES,
    END,
    GEMMA2,
    GPT2,
    LLAMA,
    SIZES,
    START,
    base_model,
    error,
    quiet_star,
    random_ids,
)

TYING = pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
FAMILIES = pytest.mark.parametrize("base", [LLAMA, GEMMA2, GPT2], ids=["llama", "gemma2", "gpt2"])


def from_base(base: dict, **options: object) -> QuietStarForCausalLM:
    settings = {"thought_tokens": 3, "lookahead": 2, "start_token_id": START, "end_token_id": END}
    return QuietStarForCausalLM.from_base(base_model(base, **options), [3, 5], **settings)


@TYING
@FAMILIES
def test_saved_and_loaded_it_is_the_same(base, tied, tmp_path):
    model, ids = quiet_star({**base, "tie_word_embeddings": tied}).eval(), random_ids(2, 6)
    model.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is QuietStarForCausalLM
    assert loaded.config.to_dict() == AutoConfig.from_pretrained(tmp_path).to_dict()
    expected = model.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in loaded.state_dict().items())
    is_tied = loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight
    assert is_tied == tied
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
        assert torch.equal(loaded(ids, labels=ids).loss, model(ids, labels=ids).loss)


def test_importing_the_model_is_enough_to_load_it(tmp_path):
    quiet_star(LLAMA).save_pretrained(tmp_path)
    program = (
        "import sys, pipeline.thought.model; from transformers import AutoModelForCausalLM; "
        "print(type(AutoModelForCausalLM.from_pretrained(sys.argv[1])).__name__)"
    )
    command = [sys.executable, "-c", program, str(tmp_path)]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "QuietStarForCausalLM"


def test_the_saved_configuration_names_no_path_of_this_machine(tmp_path):
    base_model(LLAMA).save_pretrained(tmp_path / "base")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base")
    QuietStarForCausalLM.from_base(base, [3]).save_pretrained(tmp_path / "once")
    QuietStarForCausalLM.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for folder in ("once", "twice"):
        text = (tmp_path / folder / "config.json").read_text()
        assert str(tmp_path) not in text
        assert json.loads(text)["base"]["model_type"] == "llama"


@TYING
@pytest.mark.parametrize("base", ARCHITECTURES.values(), ids=ARCHITECTURES.keys())
def test_from_base_starts_as_the_base(base, tied):
    base = {**base, "tie_word_embeddings": tied}
    model, plain, ids = from_base(base), base_model(base, attn_implementation="eager").eval(), random_ids(2, 6)
    with torch.no_grad():
        output, expected = model(ids), plain(ids, use_cache=False).logits
    assert not output.weight.any()
    assert torch.equal(output.logits, output.base_logits)
    assert error(output.logits, expected) < 1e-5


@pytest.mark.parametrize("base", [LLAMA, ARCHITECTURES["gemma"]], ids=["llama", "gemma, whose embeddings are scaled"])
def test_meta_tokens_start_as_the_mean_embedding_of_their_tokens(base):
    model = from_base(base)
    with torch.no_grad():
        expected = model.get_input_embeddings()(torch.tensor([3, 5])).mean(0)
    for parameter in (model.start_embedding, model.end_embedding):
        torch.testing.assert_close(parameter.data * model.config.meta_token_scale, expected)
    assert model.start_embedding.data_ptr() != model.end_embedding.data_ptr()


def test_a_new_model_has_the_initial_weights_of_its_base():
    """Its own initialisation must not run over the base's."""
    model = QuietStarForCausalLM(QuietStarConfig(base={**LLAMA, "vocab_size": 500}))
    assert model.get_input_embeddings().weight.std().item() == pytest.approx(0.3, rel=0.05)
    assert model.mixing_head[0].weight.std() > 0
    assert not model.mixing_head[-1].weight.any()


@FAMILIES
def test_bfloat16_is_close_to_float32(base):
    model, ids = quiet_star(base).eval(), random_ids(2, 6)
    thoughts = random_ids(2, 2, 6, 3, seed=2)
    half = AutoModelForCausalLM.from_config(model.config, dtype=torch.bfloat16)
    half.load_state_dict(model.state_dict())
    outputs = [m(ids, labels=ids, thought_ids=thoughts) for m in (model, half)]
    outputs[1].loss.backward()
    assert {parameter.grad.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert all(parameter.grad.isfinite().all() for parameter in half.parameters())
    assert outputs[1].losses.base_nll.dtype == torch.float32
    assert error(outputs[1].losses.base_nll, outputs[0].losses.base_nll) < 0.05
    assert half.generate(ids, max_new_tokens=2).shape == (2, 8)


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


def test_from_base_in_bfloat16_keeps_exact_rotary_frequencies():
    model = from_base(LLAMA, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    expected = from_base(LLAMA).base.model.rotary_emb.inv_freq
    assert torch.equal(model.base.model.rotary_emb.inv_freq, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_bfloat16_model_is_loaded_in_one_dtype(dtype, tmp_path):
    from_base(LLAMA, dtype=torch.bfloat16).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}


RANDOM = {
    "gpt2": {**GPT2, "attn_pdrop": 0.5, "embd_pdrop": 0.5, "resid_pdrop": 0.5},
    "llama": {**LLAMA, "attention_dropout": 0.5},
    "gpt_neox": {**ARCHITECTURES["gpt_neox"], "attention_dropout": 0.5, "hidden_dropout": 0.5},
    "opt": {
        "model_type": "opt",
        "vocab_size": 23,
        "hidden_size": 16,
        "word_embed_proj_dim": 16,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "ffn_dim": 24,
        "init_std": 0.3,
        "max_position_embeddings": 64,
        "dropout": 0.5,
        "layerdrop": 0.5,
    },
    "mixtral": {"model_type": "mixtral", **SIZES, "num_local_experts": 2, "router_jitter_noise": 0.9},
}


@pytest.mark.parametrize("base", RANDOM.values(), ids=RANDOM.keys())
def test_training_mode_adds_no_noise(base):
    model, ids = quiet_star(base).train(), random_ids(2, 6)
    first, second = (model(ids, labels=ids) for _ in range(2))
    assert torch.equal(first.thoughts.ids, second.thoughts.ids)
    assert torch.equal(first.loss, second.loss)
    assert torch.equal(first.loss, model.eval()(ids, labels=ids).loss)


def test_training_samples_and_prediction_is_greedy():
    model, ids = quiet_star(LLAMA).eval(), random_ids(2, 6)
    with torch.no_grad():
        training, prediction = model(ids, labels=ids), model(ids)
        assert torch.equal(training.thoughts.ids, model(ids, labels=ids, sampling=Sampling(1.0, 0)).thoughts.ids)
        assert torch.equal(prediction.logits, model(ids, sampling=Sampling(0.0, 3)).logits)
    assert training.thoughts.ids.shape == (2, 2, 6, 3)
    assert prediction.thoughts.ids.shape == (2, 1, 6, 3)
    assert training.weight.shape == (2, 2, 6, 3)
    assert prediction.weight.shape == (2, 6)


def test_given_thoughts_are_used():
    model, ids = quiet_star(LLAMA).eval(), random_ids(2, 6)
    with torch.no_grad():
        sampled = model(ids, sampling=Sampling(1.0, 3))
        given = model(ids, thought_ids=sampled.thoughts.ids)
        torch.testing.assert_close(given.logits, sampled.logits, atol=1e-5, rtol=1e-5)
        other = model(ids, thought_ids=random_ids(2, 1, 6, 3)).logits
    assert error(other, sampled.logits) > 1e-3
    assert given.thoughts is None
