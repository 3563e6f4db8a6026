"""Spans, rows of equally many token ids: how they are cut from documents, written, and read as a data set."""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import UserError
from pipeline.files import checked_table, write_rows

SPANS = pa.schema({"input_ids": pa.list_(pa.int32()), "length": pa.int32()})
IGNORED = -100

Span = tuple[np.ndarray, int]  # token ids (N,), and how many of them are not padding


def packed(documents: Iterable[np.ndarray], span: int) -> Iterator[Span]:
    """Join the token ids of all documents and cut them every ``span`` tokens; a shorter rest at the end is dropped."""
    rest = np.array([], np.int32)
    for ids in documents:
        rest = np.concatenate([rest, ids])
        whole = len(rest) // span * span
        yield from ((piece, span) for piece in rest[:whole].reshape(-1, span))
        rest = rest[whole:]


def one_each(documents: Iterable[np.ndarray], span: int, pad: int, seed: int) -> Iterator[Span]:
    """Take one random span of each document, padded on the right where the document is shorter (paper, section 5).

    Its start depends only on the seed and the document's number. A document shorter than two tokens is skipped.
    """
    for number, ids in enumerate(documents):
        if len(ids) < 2:  # one token predicts nothing
            continue
        start = random.Random(f"{seed}/{number}").randrange(len(ids) - span + 1) if len(ids) > span else 0
        kept = ids[start : start + span]
        yield np.pad(kept, (0, span - len(kept)), constant_values=pad), len(kept)


def write_spans(path: Path, spans: Iterable[Span]) -> int:
    """Write spans as an Arrow stream, a batch at a time. Returns how many there are."""
    return write_rows(path, ({"input_ids": ids, "length": length} for ids, length in spans), SPANS)


class Spans(Dataset):
    """The spans in a file as a model's inputs; padding is masked and has no labels.

    Spans stay on the disk until they are used. ``vocabulary`` is how many tokens the model has embeddings for, ``rows``
    how many spans to use, from the first (None: all). Raises UserError where the file is missing, has other columns or
    is empty, and, when a span is used, where the model has no embedding for one of its tokens, or it is shorter than
    its length.
    """

    def __init__(self, path: Path, vocabulary: int, rows: int | None = None):
        table = checked_table(path, SPANS).slice(0, rows)
        if not len(table):
            raise UserError(f"{path} has no spans")
        self._path, self._vocabulary = path, vocabulary
        self._batches = table["input_ids"].chunks
        self._starts = np.cumsum([0, *map(len, self._batches)])  # to find a batch at once: Arrow goes through them all
        self._lengths = table["length"].to_numpy()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = np.searchsorted(self._starts, index, side="right") - 1
        row = self._batches[batch][index - self._starts[batch]].values.to_numpy()
        length = int(self._lengths[index])
        if row.max() >= self._vocabulary:
            known = f"the model has embeddings for {self._vocabulary}"
            raise UserError(f"{self._path} has token {row.max()}, but {known}: run `dvc repro`, or take its tokenizer")
        if row.min() < 0 or length > len(row):
            raise UserError(f"{self._path} does not hold spans for this model: run `dvc repro` to make it again")
        ids = torch.tensor(row, dtype=torch.long)
        mask = torch.arange(len(ids)) < length
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~mask, IGNORED),
            "text_keys": torch.tensor(index),
        }

    @property
    def mean_length(self) -> float:
        """Mean number of tokens in a span, without padding."""
        return float(self._lengths.mean())
