"""The base model: its configuration, and that pretraining learns."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, get_scheduler

from pipeline import params
from pipeline.data.corpus.build import TEXT
from pipeline.data.tokens.tokenize import write_tokens
from pipeline.errors import UserError
from pipeline.files import write_rows
from pipeline.models.base import scratch_config
from pipeline.thought.decoder import build_decoder, check_decoder
from pipeline.training.pretrain import DECAY, LOG_STEPS, PretrainTrainer, write_base_model
from tests.local_hub import model_folder, word_tokenizer
from tests.micro_documents import documents

PARAMS = Path(__file__).parents[2] / "params.yaml"
SHIPPED = params.load(PARAMS)
SCRATCH = replace(
    SHIPPED.base_model.scratch,
    architecture="llama",
    hidden_size=32,
    layers=1,
    heads=2,
    key_value_heads=1,
    ffn_size=48,
    steps=2 * LOG_STEPS,
    batch_size=4,
    warmup_steps=5,
    learning_rate=0.01,
    tied_embeddings=False,
)
BASE = replace(SHIPPED.base_model, source="scratch", path=None, seed=1, scratch=SCRATCH)


@pytest.fixture(scope="module")
def tokens(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    for split in ("pretrain", "train", "heldout"):
        write_rows(folder / f"{split}.arrow", ({"text": d} for d in documents(split, 100)), TEXT)
    settings = params.Tokenize(seed=1, vocabulary=300, pretrain_span=24, span=16, packed=False)
    write_tokens(settings, BASE, folder, folder / "tokens")
    return folder / "tokens"


@pytest.fixture(autouse=True)
def own_scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))


def write(tokens: Path, folder: Path, base: params.BaseModel = BASE, isolate: bool = True) -> pd.DataFrame:
    write_base_model(base, isolate, tokens, folder / "base", folder / "steps.csv")
    return pd.read_csv(folder / "steps.csv")


def test_pretraining_learns_and_says_so(tokens: Path, tmp_path: Path):
    steps = write(tokens, tmp_path)
    assert list(steps.columns) == ["step", "loss", "heldout_loss", "learning_rate"]
    assert list(steps["step"]) == [LOG_STEPS, 2 * LOG_STEPS]
    assert steps["loss"].iloc[1] < steps["loss"].iloc[0] < 6
    assert steps["heldout_loss"].isna().tolist() == [True, False]  # also after the last step


def test_a_warm_up_may_last_until_the_rate_falls_and_no_longer():
    assert params.FALLING == DECAY
    changes = {"base_model.scratch.steps": 110, "base_model.scratch.warmup_steps": 82}
    scratch = params.load(PARAMS, changes).base_model.scratch
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    decay = {"num_decay_steps": scratch.steps // DECAY}
    rates = get_scheduler("warmup_stable_decay", optimizer, scratch.warmup_steps, scratch.steps, decay).lr_lambdas[0]
    steps = [rates(step) for step in range(scratch.steps)]
    assert steps == [*sorted(steps[:83]), *sorted(steps[83:], reverse=True)] and steps[82] == max(steps) == 1
    with pytest.raises(UserError, match="warmup_steps is 83, but must be below 83, where the rate begins to fall"):
        params.load(PARAMS, changes | {"base_model.scratch.warmup_steps": 83})


def test_the_last_step_has_a_heldout_loss_and_one_that_is_no_number_is_refused(
    tokens: Path, tmp_path: Path, monkeypatch
):
    """The last step logs no loss where it is no multiple of `LOG_STEPS`."""
    base = replace(BASE, scratch=replace(SCRATCH, steps=LOG_STEPS + 3))
    steps = write(tokens, tmp_path, base)
    assert steps["step"].tolist() == [LOG_STEPS, LOG_STEPS + 3] and steps["loss"].isna().tolist() == [False, True]
    assert steps["heldout_loss"].isna().tolist() == [True, False]
    assert AutoConfig.from_pretrained(tmp_path / "base").use_cache  # else servers would read each text anew
    nan = torch.tensor(torch.nan)
    monkeypatch.setattr(PretrainTrainer, "prediction_step", lambda self, *args, **settings: (nan, None, None))
    with pytest.raises(UserError, match="a held-out loss is not a finite number"):
        write(tokens, tmp_path / "nan", base)
    assert not (tmp_path / "nan").exists()


def test_weights_that_are_not_finite_are_not_written(tokens: Path, tmp_path: Path):
    scratch = replace(SCRATCH, steps=1, warmup_steps=0, learning_rate=1e39)
    with pytest.raises(UserError, match="step 1: the weights are no longer finite; .*lower the learning rate"):
        write(tokens, tmp_path, replace(BASE, scratch=scratch))
    assert not (tmp_path / "base").exists()


def test_the_same_seed_gives_the_same_model(tokens: Path, tmp_path: Path):
    base = replace(BASE, scratch=replace(SCRATCH, steps=3))
    runs = {"one": (1, True), "again": (1, True), "other": (2, True), "packed": (1, False)}
    for name, (seed, isolate) in runs.items():
        write(tokens, tmp_path / name, replace(base, seed=seed), isolate)
    one, again, other, packed = ((tmp_path / name / "base/model.safetensors").read_bytes() for name in runs)
    assert one == again and len({one, other, packed}) == 3


@pytest.mark.parametrize(
    "architecture, tied", [("llama", True), ("mistral", False), ("qwen2", True), ("qwen3", False), ("gemma", True)]
)
def test_a_configuration_has_the_sizes_asked_for_and_can_think(architecture: str, tied: bool):
    config = scratch_config(replace(SCRATCH, architecture=architecture, tied_embeddings=tied), 300, 1)
    model = build_decoder(config)
    check_decoder(model)
    assert model.get_input_embeddings().weight.shape == (300, 32)
    assert (model.get_output_embeddings().weight is model.get_input_embeddings().weight) == tied
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (1, 2, 1)
    assert model.model.layers[0].self_attn.q_proj.weight.shape == (32, 32)
    std = model.model.layers[0].mlp.up_proj.weight.std().item()
    assert std == pytest.approx(SCRATCH.init_std, rel=0.1)


def test_a_model_that_exists_is_kept_as_it_is(tmp_path: Path):
    source = model_folder(tmp_path / "gpt2")
    tokens = tmp_path / "tokens"
    word_tokenizer().save_pretrained(tokens / "tokenizer")
    steps = write(tokens, tmp_path, replace(BASE, source="hub", path=str(source)))
    assert steps.empty and "loss" in steps.columns
    one, other = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (source, tmp_path / "base"))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_model_that_exists_may_be_pretrained_further(tokens: Path, tmp_path: Path):
    """As one from scratch that begins with its weights would be; its folder's weights count when a run resumes."""
    source = tmp_path / "source"
    write(tokens, source, replace(BASE, scratch=replace(SCRATCH, steps=1)))
    further = replace(SHIPPED.base_model.further, steps=2 * LOG_STEPS, batch_size=4, learning_rate=0.01, warmup_steps=5)
    base = replace(BASE, source="hub", path=str(source / "base"), further=further)
    steps = write(tokens, tmp_path / "float32", base)
    assert steps["heldout_loss"].isna().tolist() == [True, False] and steps["loss"].iloc[1] < steps["loss"].iloc[0]
    low = write(tokens, tmp_path / "bfloat16", replace(base, further=replace(further, precision="bfloat16")))
    assert low["loss"].to_list() == pytest.approx(steps["loss"].to_list(), rel=0.02)
    one, other, kept = (
        AutoModelForCausalLM.from_pretrained(tmp_path / name / "base").state_dict()
        for name in ("float32", "bfloat16", "source")
    )
    assert {weight.dtype for weight in other.values()} == {torch.float32}
    assert not any(torch.equal(one[name], kept[name]) or torch.equal(one[name], other[name]) for name in one)


def pretrained_further(folder: Path, source: str, span: int = 24) -> pd.DataFrame:
    """The log of two more steps of the hub model ``source``, with its own tokenizer."""
    further = replace(SHIPPED.base_model.further, steps=2, batch_size=2)
    base = replace(BASE, source="hub", path=source, further=further)
    for split in ("pretrain", "train", "heldout"):
        write_rows(folder / f"{split}.arrow", ({"text": d} for d in documents(split, 40)), TEXT)
    write_tokens(params.Tokenize(1, 300, pretrain_span=span, span=16, packed=False), base, folder, folder / "tokens")
    return write(folder / "tokens", folder, base)


def test_a_model_without_sdpa_may_be_pretrained_further_and_lie_in_the_home_folder(tmp_path: Path, monkeypatch):
    sizes = {"intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8}
    model_folder(tmp_path / "gemma", "gemma2", **sizes)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert pretrained_further(tmp_path / "run", "~/gemma")["heldout_loss"].notna().any()


def test_spans_longer_than_the_models_positions_are_refused(tmp_path: Path):
    source = model_folder(tmp_path / "gpt2", n_positions=20)
    with pytest.raises(
        UserError, match="tokenize.pretrain_span is 24, but the model has 20 positions: make it smaller"
    ):
        pretrained_further(tmp_path / "run", str(source))


def test_a_token_that_no_text_has_may_have_no_embedding(tmp_path: Path):
    """Gemma 3's tokenizer has an image token, which its text models do not know."""
    source = model_folder(tmp_path / "gpt2")
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    tokenizer.save_pretrained(source)
    assert pretrained_further(tmp_path / "run", str(source))["heldout_loss"].notna().any()
