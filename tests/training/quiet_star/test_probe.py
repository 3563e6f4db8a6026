"""The probe: how many thoughts hold the working."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from pipeline.data.corpus.build import PROBE
from pipeline.data.tokens.tokenizer import train_tokenizer
from pipeline.files import write_rows
from pipeline.thought.sampler import Sampling
from pipeline.training.quiet_star.probe import Probe, read_probe
from tests.thought.tiny import LLAMA, quiet_star

PROMPTS = ["Q: What is it?\nA:", "Q: And what is that one there?\nA:", "Q: x\nA:"]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(PROMPTS * 5, 300)


def thinker(tokenizer: PreTrainedTokenizerFast):
    base = {**LLAMA, "vocab_size": len(tokenizer), "max_position_embeddings": 256}
    return quiet_star(base, thought_tokens=3, start_token_id=None, end_token_id=None).eval()


def probe(path: Path, tokenizer: PreTrainedTokenizerFast, workings: list[str], rationales: int = 2) -> Probe:
    rows = [{"task": t, "prompt": p, "working": w} for t, p, w in zip("xxy", PROMPTS, workings, strict=True)]
    write_rows(path / "probe.parquet", rows, PROBE)
    return read_probe(path / "probe.parquet", tokenizer, rationales)


def test_thoughts_are_those_at_the_end_of_each_prompt_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """Greedy, as only then a text's place in the batch does not matter; no padding here."""
    model, some = thinker(tokenizer), probe(tmp_path, tokenizer, ["", "", ""], rationales=1)
    for prompt, thoughts in zip(PROMPTS, some.thoughts(model, Sampling(0.0)), strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"]])
        alone = model(ids, sampling=Sampling(0.0)).thoughts.ids[0, 0, -1]
        assert thoughts == [tokenizer.decode(alone)]


def test_prompts_do_not_end_with_an_end_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """That some tokenizers append: after it a thought would begin the next document."""
    plain, ends = probe(tmp_path, tokenizer, ["", "", ""]), deepcopy(tokenizer)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    ends.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    assert ends("x")["input_ids"][-1] == end[1]
    assert torch.equal(probe(tmp_path, ends, ["", "", ""]).input_ids, plain.input_ids)


def test_the_share_counts_thoughts(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    model = thinker(tokenizer)
    thoughts = probe(tmp_path, tokenizer, ["", "", ""]).thoughts(model, Sampling(seed=4))
    assert [len(some) for some in thoughts] == [2, 2, 2] and thoughts[0][0] != thoughts[0][1]
    workings = [thoughts[0][0], thoughts[1][1], "in no thought at all"]
    shares = probe(tmp_path, tokenizer, workings).shares(model, seed=4)
    assert shares == {"working_share": pytest.approx(2 / 6), "working_share_x": 0.5, "working_share_y": 0.0}


def test_a_corpus_without_workings_has_no_probe(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    write_rows(tmp_path / "probe.parquet", [], PROBE)
    assert read_probe(tmp_path / "probe.parquet", tokenizer, 2) is None
