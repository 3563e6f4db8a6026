"""Memory stays flat while the data grow tenfold: texts, tokens and questions stay on the disk.

`python -m tests.test_peak_memory tokenize 20000` prints the peak memory in MB of a stage on data of this size.
"""

import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from omegaconf import OmegaConf

from pipeline import files
from pipeline.data.tasks.ask import QUESTIONS
from pipeline.data.tokens.tokenize import TEXT, write_tokens
from pipeline.evaluation.chain_of_thought.vote import write_chain_of_thought
from pipeline.evaluation.direct.evaluate import write_evaluation
from pipeline.files import write_rows
from pipeline.params import BaseModel, ChainOfThought, Evaluate, Scratch, Tokenize
from tests.evaluation.chain_of_thought.asking import HOW, PARAMS, byte_tokenizer, tiny_model
from tests.stage_runner import ENVIRONMENT, ROOT

LABELS = list("ABCDE")
TASK = {"title": "t", "source": "none", "version": 1, "data": {"path": "p", "split": "s"}, "kind": "choice"}
TASK |= {"prompt": "{{ q }}", "answer": "a", "choices": "c"}
WORDS = ["What", "is", "the", "learning", "and", "stand", "in", "a", "row", "bridge", "morning", "closed", "apples"]


def texts(count: int, characters: int) -> Iterator[str]:
    for i in range(count):
        text = " ".join(random.Random(i).choices(WORDS, k=characters // 4))
        yield text[:characters]


def tokenize(count: int, folder: Path) -> None:
    """Tokenize ``count`` documents of 2,000 characters for pretraining."""
    for split, some in (("pretrain", count), ("train", 100), ("heldout", 100)):
        write_rows(folder / f"texts/{split}.arrow", ({"text": text} for text in texts(some, 2000)), TEXT)
    params = Tokenize(seed=1, vocabulary=300, pretrain_span=128, span=48)
    write_tokens(params, BaseModel(seed=1, source="scratch", scratch=Scratch()), folder / "texts", folder / "tokens")


def asked(count: int, folder: Path, **changes: object) -> None:
    """Write a task of ``count`` questions of 300 characters, with ``changes`` in its file, and a model."""
    about = {"labels": LABELS, "group": ""}
    rows = (
        about | {"prompt": f"Q: {text}\nA:", "answer": LABELS[i % 5], "reasoning_prompt": text}
        for i, text in enumerate(texts(count, 300))
    )
    write_rows(folder / "tasks/t.parquet", rows, QUESTIONS)
    OmegaConf.save(OmegaConf.create(TASK | changes), folder / "tasks/t.yaml")
    tokenizer = byte_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def evaluate(count: int, folder: Path) -> None:
    asked(count, folder)
    params = Evaluate(seed=1, batch_size=32, thought_temperature=0.0, device="cpu")
    write_evaluation(params, folder / "model", folder / "tasks", folder / "results")


def chain_of_thought(count: int, folder: Path) -> None:
    asked(count, folder, chain_of_thought=asdict(HOW))
    params = ChainOfThought(**PARAMS | {"samples": 3, "new_tokens": 2, "answer_tokens": 1, "batch_size": 32})
    write_chain_of_thought(params, folder / "model", folder / "tasks", folder / "results")


STAGES = {"tokenize": tokenize, "evaluate": evaluate, "chain_of_thought": chain_of_thought}


def peak(stage: str, count: int) -> int:
    """The peak memory of a new process, in MB."""
    run = [sys.executable, "-m", "tests.test_peak_memory", stage, str(count)]
    environment = {**os.environ, **ENVIRONMENT}
    done = subprocess.run(run, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return int(done.stdout)


# in memory, the texts of 40,000 documents would take 80 MB; 4,500 questions more, which once were in memory, took 42 MB
# in evaluation and 68 MB with samples of a chain of thought; a peak differs by up to 31 MB between equal runs
@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, count, more", [("tokenize", 4000, 60), ("evaluate", 500, 32), ("chain_of_thought", 500, 54)]
)
def test_ten_times_as_much_takes_no_more_memory(stage: str, count: int, more: int):
    assert peak(stage, 10 * count) - peak(stage, count) < more


def main() -> None:
    stage, count = sys.argv[1:]
    files.BATCH_ROWS = 100  # a batch of 2,000 rows, which the smaller run does not fill, takes up to 40 MB
    with TemporaryDirectory() as folder:
        STAGES[stage](int(count), Path(folder))
    status = Path("/proc/self/status").read_text()  # getrusage may give the parent's peak
    print(int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024)


if __name__ == "__main__":
    main()
