"""Documents as token ids: encoded by several processes, kept on the disk, so that no corpus has to fit into memory."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, List, Value
from transformers import PreTrainedTokenizerBase

from pipeline.files import arrow_table

DOCUMENTS_AT_ONCE = 1000
DOCUMENTS_A_PROCESS = 20_000  # fewer are done before another process has started
FEATURES = Features({"input_ids": List(Value("int32"))})


def read(path: Path) -> Dataset:
    """The documents in an Arrow file, column ``text``. Raises UserError where it is missing or broken."""
    arrow_table(path)
    return Dataset.from_file(str(path))


def encoded(
    texts: Dataset, tokenizer: PreTrainedTokenizerBase, name: str, work: Path, processes: int | None = None
) -> Iterator[np.ndarray]:
    """The token ids of each document (tokens,), in order, its end token last (where the tokenizer has one).

    ``work`` is a folder for intermediate files, ``processes`` as many as there are cores for if it is not given: the
    ids do not depend on it.
    """
    if processes is None:
        processes = min(len(os.sched_getaffinity(0)), 1 + len(texts) // DOCUMENTS_A_PROCESS)
    if processes > 1:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not outlive a fork
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(texts: list[str]) -> dict[str, list[list[int]]]:
        found = tokenizer(texts, return_attention_mask=False, verbose=False)["input_ids"]
        return {"input_ids": [ids if ids[-1:] == end else ids + end for ids in found]}

    documents = texts.map(
        encode,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        input_columns="text",
        remove_columns=texts.column_names,
        features=FEATURES,
        num_proc=processes if processes > 1 else None,
        cache_file_name=str(work / "ids.arrow"),
        new_fingerprint=name,  # else `datasets` reads the whole tokenizer to find out what it knows already
        desc=f"tokenize {name}",
    )
    for some in documents.with_format("arrow").iter(DOCUMENTS_AT_ONCE):
        for ids in some["input_ids"]:
            yield ids.values.to_numpy()
