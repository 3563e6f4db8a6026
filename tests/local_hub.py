"""Small data sets and models in local folders, as the hub lays them out."""

import json
from pathlib import Path

import pandas as pd
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

SENTENCES = [
    "The bridge was closed in the morning.",
    "Ana has 3 apples and buys 4 more. How many apples has she? 7",
    "A list: (A) trees (B) water (C) ponds (D) cliffs (E) wood",
    "Q: What is it? A: 12",
    "Numbers 0 1 2 3 4 5 6 7 8 9 stand in a row.",
]


def texts(count: int) -> list[str]:
    return [f"{SENTENCES[i % len(SENTENCES)]} Line {i}." for i in range(count)]


def parquet(folder: Path, split: str, rows: list[dict], part: str = "data") -> Path:
    """Write ``rows`` as ``folder``/``part``/SPLIT-00000-of-00001.parquet, as the hub names it."""
    path = folder / part / f"{split}-00000-of-00001.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pd.DataFrame(rows).to_parquet(path, index=False)
    return folder


def configured(folder: Path, name: str | None, split: str, rows: list[dict]) -> Path:
    """Write ``rows`` as a split of the configuration ``name`` (or ``default``), with a data card, as on the hub."""
    part = name or "default"
    parquet(folder, split, rows, part)
    splits = sorted(file.name.partition("-0")[0] for file in (folder / part).iterdir())
    card = [{"config_name": part, "data_files": [{"split": s, "path": f"{part}/{s}-*"} for s in splits]}]
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return folder


def text_lines(folder: Path, split: str, lines: list[str], ending: str = "txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{split}.{ending}").write_text("\n".join(lines) + "\n")
    return folder


def jsonl(folder: Path, split: str, rows: list[dict]) -> Path:
    return text_lines(folder, split, list(map(json.dumps, rows)), "jsonl")


def gsm8k_rows(count: int) -> list[dict]:
    return [{"question": f"What is {i} and {i + 90}?", "answer": f"Add.\n#### {2 * i + 90}"} for i in range(count)]


def commonsense_qa_rows(count: int) -> list[dict]:
    some = {"choices": {"label": list("ABCDE"), "text": ["trees", "water", "ponds", "cliffs", "wood"]}}
    return [{"question": f"Where is number {i}?", **some, "answerKey": "ABCDE"[i % 5]} for i in range(count)]


def sources(root: Path) -> dict[str, object]:
    """Write small data sets, one in each format, and two tasks of five questions; return the parameters for them."""
    configured(root / "openai/gsm8k", "main", "test", gsm8k_rows(5))
    parquet(root / "tau/commonsense_qa", "validation", commonsense_qa_rows(5))
    folders = {
        "pretrain": (text_lines(root / "books", "train", texts(60)), "train", "text"),
        "train": (configured(root / "openai/gsm8k", "main", "train", gsm8k_rows(12)), "train", "question+answer"),
        "heldout": (jsonl(root / "news", "validation", [{"text": t} for t in texts(8)]), "validation", "text"),
    }
    files = ["tasks/gsm8k.yaml", "tasks/commonsense_qa.yaml"]
    changes: dict[str, object] = {"corpus.source": "hub", "tasks.files": files, "tasks.root": str(root)}
    for split, (folder, part, columns) in folders.items():
        values = {"path": str(folder), "name": None, "split": part, "columns": columns, "rows": None}
        changes |= {f"corpus.hub.{split}.{name}": value for name, value in values.items()}
    return changes


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer like SentencePiece's: unigrams, `▁` for a space and before the text, some numbers of two digits."""
    single = [chr(code) for code in range(33, 127)]
    words = [f"▁{c}" for c in single if c.isalnum()] + ["▁the", "▁What", "▁is", "▁and", "ing", "42", "▁12"]
    vocabulary = [("<unk>", 0.0), ("</s>", 0.0), *((piece, -2.0) for piece in ["▁", "\n", *single, *words])]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="</s>")


GPT2_SIZES = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 256, "initializer_range": 0.3}
OTHER_SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "n_head": 2, "n_layer": 1}


def model_folder(folder: Path, architecture: str = "gpt2", **sizes: object) -> Path:
    tokenizer = word_tokenizer()
    sizes = (GPT2_SIZES if architecture == "gpt2" else OTHER_SIZES) | sizes
    config = AutoConfig.for_model(architecture, vocab_size=len(tokenizer), bos_token_id=1, eos_token_id=1, **sizes)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
