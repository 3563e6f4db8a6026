"""Conversion of the authors' checkpoints (thought/test_reference.py compares their numbers)."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from huggingface_hub import save_torch_state_dict
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import MistralConfig, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.models.base import read_tokenizer
from pipeline.models.trained import load_trained
from pipeline.publish.authors import VARIANT, from_authors, from_their_counts, main
from pipeline.thought.generation import continue_texts
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from tests.bad_input.spoil import config, each, gone, holds, way
from tests.local_hub import word_tokenizer
from tests.thought.test_reference import CASES, needs_cases
from tests.thought.tiny import ARCHITECTURES

START, END = "<|startthought|>", "<|endthought|>"
ROWS = len(word_tokenizer()) + 2
BASE = ARCHITECTURES["mistral"] | {"vocab_size": ROWS, "rope_theta": 123.0, "rms_norm_eps": 1e-3}
WIDTH = BASE["hidden_size"]
THEIRS = {**BASE, "architectures": ["MistralForCausalLM"]}
THEIRS |= {**VARIANT, "max_thoughts": 13, "merged_talk_heads": True, "torch_dtype": "bfloat16", "use_cache": True}
COUNTS = from_their_counts(n_ahead=8, n_ahead_talk=4, n_passes=2)
IDS = {"start_token_id": ROWS - 2, "end_token_id": ROWS - 1}


def untrained(rows: int = ROWS) -> QuietStarForCausalLM:
    torch.manual_seed(0)
    base = MistralConfig(**BASE | {"vocab_size": rows, "initializer_range": 0.5})
    model = QuietStarForCausalLM(QuietStarConfig(base=base.to_dict(), **COUNTS))
    torch.nn.init.normal_(model.mixing_head[-1].weight)
    return model


def their_state(rows: int = ROWS, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    ours = untrained(rows).state_dict()
    state = {name.removeprefix("base.").replace("mixing_head.", "talk_head.0."): value for name, value in ours.items()}
    for name in ("start_embedding", "end_embedding"):
        state[name] = torch.stack([torch.randn(WIDTH), torch.full((WIDTH,), 99.0)])
    return {name: value.to(dtype) for name, value in state.items()}


def meta_tokenizer() -> PreTrainedTokenizerBase:
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([START, END], special_tokens=True)
    return tokenizer


def checkpoint(folder: Path, make: Callable = meta_tokenizer, shards: int = 2, rows: int = ROWS) -> Path:
    """Write a checkpoint of theirs in bfloat16, as the hub lays it out, in several shards or in one file."""
    make().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(THEIRS | {"vocab_size": rows}))
    state = their_state(rows, torch.bfloat16)
    size = sum(value.nbytes for value in state.values())
    save_torch_state_dict(state, folder, max_shard_size=int(1.2 * size / shards))
    assert len(list(folder.glob("*.safetensors"))) == shards
    return folder


def test_names_dtypes_and_the_mean_row():
    """Nothing is copied. Rotary frequencies stay exact: bfloat16 would move every position."""
    assert COUNTS == {"thought_tokens": 5, "lookahead": 4, "rationales": 2}
    exact, full = untrained().base.model.rotary_emb.inv_freq, their_state()
    mixed = {name: value.bfloat16() if "layers" in name else value for name, value in full.items()}
    states = [(full, torch.float32), (their_state(dtype=torch.bfloat16), torch.bfloat16), (mixed, torch.float32)]
    for state, dtype in states:
        model = from_authors(state, THEIRS, **COUNTS)
        assert {p.dtype for p in model.parameters()} == {dtype}  # of several the widest, so that none is rounded
        assert exact.dtype == torch.float32 and torch.equal(model.base.model.rotary_emb.inv_freq, exact)
        assert model.base.model.embed_tokens.weight.data_ptr() == state["model.embed_tokens.weight"].data_ptr()
        assert torch.equal(model.start_embedding, state["start_embedding"][0])
        assert torch.equal(model.mixing_head[2].weight, state["talk_head.0.2.weight"])
        assert torch.equal(model.base.lm_head.weight, state["lm_head.weight"])
        config = model.base.config
        assert (config.rope_parameters["rope_theta"], config.rms_norm_eps) == (123.0, 1e-3)


@pytest.mark.parametrize("shards", [1, 3])
def test_a_checkpoint_becomes_a_trained_folder(shards: int, tmp_path: Path, capsys: pytest.CaptureFixture):
    """The output folder may exist if it is empty, and pickles beside safetensors, as trainers leave, do not matter."""
    source, out = checkpoint(tmp_path / "theirs", shards=shards), tmp_path / "ours"
    out.mkdir()
    (source / "training_args.bin").write_bytes(b"no pickle")
    main([str(source), str(out)])
    printed = capsys.readouterr().out
    model, expected = load_trained(out), from_authors(their_state(dtype=torch.bfloat16), THEIRS, **COUNTS, **IDS)
    assert model.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in expected.state_dict().items())
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert model.base.model.rotary_emb.inv_freq.dtype == torch.float32
    config = model.config
    assert (config.method, config.meta_token_scale, config.policy_weight) == ("quiet_star", 100.0, 1e6)
    assert (config.thought_tokens, config.lookahead, config.rationales, config.policy_temperature) == (5, 4, 2, 3.0)
    ours, theirs, text = read_tokenizer(out), meta_tokenizer(), "What is 12 and the rest?"
    assert ours(text)["input_ids"] == theirs(text)["input_ids"]
    assert ours.convert_tokens_to_ids([START, END]) == [ROWS - 2, ROWS - 1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "theirs"]
    size = sum(p.numel() for p in model.parameters())
    assert printed.splitlines() == [
        f"{out}: {size:,} parameters in bfloat16, 5 thought tokens, lookahead 4, 2 rationales; "
        f"never sampled: {ROWS - 2}, {ROWS - 1}"
    ]


def test_meta_tokens_are_added_to_mistrals_own_tokenizer(tmp_path: Path):
    """Their script does the same, and does not save the tokenizer that it makes."""
    main([str(checkpoint(tmp_path / "theirs", word_tokenizer)), str(tmp_path / "ours")])
    assert read_tokenizer(tmp_path / "ours").convert_tokens_to_ids([START, END]) == [ROWS - 2, ROWS - 1]
    model = load_trained(tmp_path / "ours")
    assert [model.config.start_token_id, model.config.end_token_id] == [ROWS - 2, ROWS - 1]
    with torch.no_grad():
        model.base.lm_head.weight[-2:] = 50.0
        model.base.model.norm.weight.abs_()
    written = continue_texts(model.thinker, torch.tensor([[3, 4]]), max_new_tokens=20, sampling=Sampling(5.0, 1))
    assert written.max() < ROWS - 2


@pytest.mark.parametrize("spare", [-2, 5])
def test_a_vocabulary_without_meta_tokens_bans_nothing(spare: int, tmp_path: Path, capsys: pytest.CaptureFixture):
    """There is no row for them, or nothing says which rows are theirs."""
    main([str(checkpoint(tmp_path / "theirs", word_tokenizer, rows=ROWS + spare)), str(tmp_path / "ours")])
    assert load_trained(tmp_path / "ours").config.banned == []
    assert len(read_tokenizer(tmp_path / "ours")) == ROWS - 2
    assert "never sampled: no id" in capsys.readouterr().out


def test_what_is_there_is_never_overwritten_and_odd_counts_are_pointed_out(tmp_path: Path, caplog):
    """Not even a trained folder of ours, which may have taken a day."""
    source, trained, file = checkpoint(tmp_path / "theirs"), tmp_path / "ours", tmp_path / "file"
    main([str(source), str(trained)])
    assert not caplog.records
    file.write_text("notes")
    for out in (trained, file):
        before = {path: path.stat().st_mtime_ns for path in [out, *out.glob("*")]}
        with pytest.raises(UserError, match=f"{out} exists and is not empty: name a new folder, or remove"):
            main([str(source), str(out)])
        assert {path: path.stat().st_mtime_ns for path in [out, *out.glob("*")]} == before
    main([str(source), str(tmp_path / "other"), "--n-ahead", "12", "--n-ahead-talk", "3", "--n-passes", "1"])
    assert "max_thoughts 13" in caplog.text and "16" in caplog.text
    config = load_trained(tmp_path / "other").config
    assert (config.thought_tokens, config.lookahead, config.rationales) == (9, 3, 1)


@way
def change_weights(source: Path, name: str, value: Tensor | None) -> None:
    """Put another tensor of this name into the first shard; None leaves it out."""
    for path in source.glob("*.safetensors"):
        state = {key: kept for key, kept in load_file(path).items() if key != name}
        if value is not None and "00001" in path.name:
            state[name] = value
        save_file(state, path)


INDEX, SHARDS = "model.safetensors.index.json", [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
no_weights, configured = gone(INDEX, *SHARDS), partial(config, "config.json")
pickled = each(no_weights, holds("pytorch_model-00001-of-00002.bin", b"a pickle"))
WRONG = {
    name: (configured(**{name: not value}), f"{name} is {json.dumps(not value)}") for name, value in VARIANT.items()
}
WRONG |= {
    "another model": (configured(model_type="llama"), "a llama model"),
    "no number": (configured(hidden_size="wide"), "hidden_size"),
    "another size": (configured(hidden_size=2 * WIDTH), "not a checkpoint of the authors' code: .* torch.bfloat16 of"),
    "no config": (gone("config.json"), "config.json is missing or broken"),
    "a list": (holds("config.json", b"[]"), "holds a None model"),
    "pickled": (pickled, r"pickled ones.*\(pytorch_model-00001-of-00002.bin\)"),
    "no weights": (no_weights, "holds no weights"),
    "broken index": (holds(INDEX, b"?"), "index.json is missing or broken"),
    "empty index": (holds(INDEX, b'{"weight_map": []}'), "index.json names no files of weights"),
    "lost shard": (gone(SHARDS[1]), "model-00002-of-00002.safetensors is missing or broken: download it again"),
    "broken shard": (holds(SHARDS[1], b"version https://git-lfs"), "00002.* is missing or"),
    "no head": (change_weights("talk_head.0.0.weight", None), "it has no talk_head.0.0.weight"),
    "no table": (change_weights("model.embed_tokens.weight", None), "embeddings for 0 tokens"),
    "more": (change_weights("think_head.0.weight", torch.zeros(3)), "it has a think_head.0.weight"),
    "one row": (change_weights("end_embedding", torch.zeros(1)), r"end_embedding is .* not floats of \[16\]"),
    "integers": (change_weights("lm_head.weight", torch.zeros(ROWS, WIDTH).char()), "lm_head.weight is torch.int8"),
    "no tokenizer": (gone("tokenizer.json", "tokenizer_config.json"), "no tokenizer at"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_other_folders_are_refused_in_one_line(wrong: str, tmp_path: Path, capsys: pytest.CaptureFixture):
    source = checkpoint(tmp_path / "theirs")
    change, message = WRONG[wrong]
    change(source)
    with pytest.raises(UserError, match=message) as refused:
        main([str(source), str(tmp_path / "ours")])
    assert str(source) in str(refused.value) and "\n" not in str(refused.value)
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"] and not capsys.readouterr().out


def test_a_tokenizer_larger_than_the_table_and_counts_that_make_no_thought_are_refused(tmp_path: Path):
    folders = [str(checkpoint(tmp_path / "theirs", rows=ROWS - 1)), str(tmp_path / "ours")]
    with pytest.raises(UserError, match=f"embeddings for {ROWS - 1} tokens, but its tokenizer has {ROWS}"):
        main(folders)
    for counts in (("--n-ahead", "3"), ("--n-ahead-talk", "0"), ("--n-passes", "0")):
        with pytest.raises(UserError, match="--n-ahead must be at least 4, --n-ahead-talk and --n-passes at least 1"):
            main([*folders, *counts])


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = checkpoint(tmp_path / "theirs")
    monkeypatch.setattr("transformers.PreTrainedTokenizerBase.save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main([str(source), str(tmp_path / "ours")])
    assert [path.name for path in tmp_path.iterdir()] == ["theirs"]


@needs_cases
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_their_own_cases_are_read_from_a_folder(case: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    about, expected = json.loads((case / "case.json").read_text()), load_file(case / "expected.safetensors")
    source = tmp_path / "theirs"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(about["config"]))
    (source / "model.safetensors").write_bytes((case / "model.safetensors").read_bytes())
    tokenizer = word_tokenizer()
    tokenizer.add_tokens([f"<{i}>" for i in range(about["start_token_id"] - len(tokenizer))])
    tokenizer.add_tokens([START, END], special_tokens=True)
    tokenizer.save_pretrained(source)
    counts = {name: about[name] for name in ("n_ahead", "n_ahead_talk", "n_passes")}
    options = [f"--{name.replace('_', '-')}={count}" for name, count in counts.items()]
    main([str(source), str(tmp_path / "ours"), *options])
    assert not caplog.records  # their max_thoughts agrees
    model = load_trained(tmp_path / "ours")
    ids = {name: about[name] for name in ("start_token_id", "end_token_id")}
    assert {name: getattr(model.config, name) for name in ids} == ids
    direct = from_authors(load_file(case / "model.safetensors"), about["config"], **from_their_counts(**counts), **ids)
    text, thoughts = expected["input_ids"].long(), expected["thought_ids"].long()[:, :1]
    with torch.no_grad():
        logits = model(text, thought_ids=thoughts).logits
        assert torch.equal(logits, direct(text, thought_ids=thoughts).logits)
    if about["mode"] == "eval":
        real = (text != about["pad_token_id"]).unsqueeze(-1)
        assert ((logits - expected["out.logits"]) * real).norm() < 1e-5 * (expected["out.logits"] * real).norm()
