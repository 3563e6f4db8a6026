"""Spans of token ids: the file that the tokenize stage writes, and the data set that training and analysis read."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.errors import UserError
from pipeline.files import checked_table

SPANS = pa.schema({"input_ids": pa.list_(pa.int32()), "length": pa.int32()})
IGNORED = -100
SHORTEST = 2  # tokens of a span: one predicts nothing


class Spans(Dataset):
    """Spans of token ids (`SPANS`) as a model's inputs; padding is neither attended to nor a label.

    They stay on the disk until they are used. ``vocabulary``: how many tokens the model has embeddings for. Raises
    UserError for a file that does not hold spans, also when one is used that is of another length or vocabulary.
    """

    def __init__(self, path: Path, vocabulary: int, rows: int | None = None):
        table = checked_table(path, SPANS).slice(0, rows)
        if not len(table):
            raise UserError(f"{path} has no spans")
        self._path, self._vocabulary = path, vocabulary
        self._batches = table["input_ids"].chunks
        self._starts = np.cumsum([0, *map(len, self._batches)])  # Arrow's own look-up goes through all batches
        self._lengths = table["length"].to_numpy()
        self._width = len(self._row(0))
        if self._lengths.min() < SHORTEST or self._lengths.max() > self._width:
            raise self._refusal()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(self._ids(index), dtype=torch.long)
        mask = torch.arange(len(ids)) < int(self._lengths[index])
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~mask, IGNORED),
            "text_keys": torch.tensor(index),
        }

    def _ids(self, index: int) -> np.ndarray:
        row = self._row(index)
        if len(row) != self._width or row.null_count:
            raise self._refusal()
        ids = row.to_numpy()
        if ids.min() < 0 or ids.max() >= self._vocabulary:
            raise self._refusal()
        return ids

    def _row(self, index: int) -> pa.Array:
        batch = np.searchsorted(self._starts, index, side="right") - 1
        return self._batches[batch][index - self._starts[batch]].values

    def _refusal(self) -> UserError:
        return UserError(f"{self._path} does not hold spans for this model: run `dvc repro` to make it again")

    @property
    def mean_length(self) -> float:
        """Tokens of a span that are not padding, on average."""
        return float(self._lengths.mean())
