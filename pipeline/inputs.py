"""What several stages begin with: the tokenizer, the spans of token ids, the device."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.errors import UserError
from pipeline.files import arrow_table

IGNORED = -100


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage wrote to ``folder``. Raises UserError where there is none."""
    if not folder.is_dir():  # transformers would look for a hub model of this name
        raise UserError(f"the folder {folder} is missing: run `dvc repro` to make it again")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers each raise their own
        raise UserError(f"{folder} holds no usable tokenizer: run `dvc repro` to make it again") from error


class Spans(Dataset):
    """Spans of token ids (`pipeline.tokens`) as a model's inputs; padding is neither attended to nor a label.

    They stay on the disk until they are used.
    """

    def __init__(self, path: Path, rows: int | None = None):
        table = arrow_table(path).slice(0, rows)
        if not len(table):
            raise UserError(f"{path} has no spans")
        self._batches = table["input_ids"].chunks
        self._starts = np.cumsum([0, *map(len, self._batches)])  # Arrow's own look-up goes through all batches
        self._lengths = table["length"].to_numpy()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        batch = np.searchsorted(self._starts, index, side="right") - 1
        ids = torch.tensor(self._batches[batch][index - self._starts[batch]].values.to_numpy(), dtype=torch.long)
        mask = torch.arange(len(ids)) < int(self._lengths[index])
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~mask, IGNORED),
            "text_keys": torch.tensor(index),
        }

    @property
    def mean_length(self) -> float:
        """Tokens of a span that are not padding, on average."""
        return float(self._lengths.mean())


def pick_device(device: str) -> str:
    """``cuda`` or ``cpu``, from those or ``auto``. Raises UserError where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but no CUDA GPU is usable here: set it to auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
