"""The base of a trained model alone: an ordinary model of transformers, which predicts as with thoughts off."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaForCausalLM

from pipeline.errors import UserError
from pipeline.publish.plain import main
from tests.local_hub import word_tokenizer
from tests.thought.tiny import LLAMA, error, quiet_star, random_ids

ENDS = [1, 3]  # a chat model has several end tokens


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    tokenizer = word_tokenizer()
    model = quiet_star(LLAMA | {"vocab_size": len(tokenizer)})
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(tmp_path / "trained")
    tokenizer.save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


@torch.no_grad()
def test_it_predicts_as_with_thoughts_off(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    main([str(trained), str(tmp_path / "plain")])
    model, plain = (AutoModelForCausalLM.from_pretrained(path).eval() for path in (trained, tmp_path / "plain"))
    assert type(plain) is LlamaForCausalLM
    assert plain.config.architectures == ["LlamaForCausalLM"] and plain.config._attn_implementation != "quiet_star"
    ids = random_ids(2, 6)
    assert error(plain(ids).logits, model(ids).base_logits) < 1e-5
    assert error(plain(ids).logits, model(ids).logits) > 1e-3
    assert {path.suffix for path in (tmp_path / "plain").iterdir()} == {".json", ".safetensors"}
    assert plain.generation_config.eos_token_id == ENDS
    assert "LlamaForCausalLM of" in capsys.readouterr().out


def test_mistakes(trained: Path, tmp_path: Path):
    with pytest.raises(UserError, match="exists and is not empty: name a new folder"):
        main([str(trained), str(trained)])
    with pytest.raises(UserError, match="holds no trained model"):
        main([str(tmp_path), str(tmp_path / "plain")])
    assert not (tmp_path / "plain").exists()
