"""Documents as token ids, read and encoded a batch at a time, so that no corpus has to fit into memory."""

import glob
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Features, IterableDataset, List, Value, load_dataset
from transformers import PreTrainedTokenizerBase

from pipeline.files import checked_table

DOCUMENTS_AT_ONCE = 1000
TEXT = pa.schema({"text": pa.string()})
FEATURES = Features({"input_ids": List(Value("int32"))})


def read(path: Path) -> IterableDataset:
    """The documents in an Arrow file, column ``text``. Raises UserError where there is none.

    They are read from the file as they are used, which is not mapped: its pages would count as memory.
    """
    checked_table(path, TEXT)
    return load_dataset("arrow", data_files=glob.escape(str(path)), split="train", streaming=True)


def encoded(texts: IterableDataset, tokenizer: PreTrainedTokenizerBase) -> Iterator[np.ndarray]:
    """The token ids of each document (tokens,), in order, its end token last (where the tokenizer has one)."""
    encoder = tokenizer.backend_tokenizer  # a third faster than `tokenizer`, which makes masks and offsets too
    encoder.no_truncation()
    encoder.no_padding()
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]

    def encode(texts: list[str]) -> dict[str, list[list[int]]]:
        found = [encoding.ids for encoding in encoder.encode_batch_fast(texts)]  # by as many threads as there are cores
        return {"input_ids": [ids if ids[-1:] == end else ids + end for ids in found]}

    documents = texts.map(
        encode,
        batched=True,
        batch_size=DOCUMENTS_AT_ONCE,
        input_columns="text",
        remove_columns="text",
        features=FEATURES,
    )
    for some in documents.with_format("arrow").iter(DOCUMENTS_AT_ONCE):
        for ids in some["input_ids"]:
            yield ids.values.to_numpy()
