"""What several stages begin with: the tokenizer, a model that can think, the spans of token ids, the device."""

import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import UserError, reason
from pipeline.files import SPANS, check_model_folder, checked_table
from pipeline.thought.decoder import UnsupportedDecoderError, check_decoder

IGNORED = -100
SHORTEST = 2  # tokens of a span: one predicts nothing
NUMBER = re.compile(r"\d+")  # of a layer, in the name of a weight


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage wrote to ``folder``. Raises UserError where there is none."""
    check_made(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers each raise their own
        raise UserError(f"{folder} holds no usable tokenizer: run `dvc repro` to make it again") from error


def check_made(folder: Path) -> None:
    """Raise UserError where there is no such folder: transformers would look for a hub model of this name."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing: run `dvc repro` to make it again")


def read_model(path: Path | str, remedy: str = "", **options: object) -> PreTrainedModel:
    """The causal language model in the folder ``path``, or of this name in the hub, in float32.

    ``remedy`` ends what is said of one that cannot be read; ``options`` are those of transformers' ``from_pretrained``.
    Raises UserError where there is none, where its weights are not whole, not safetensors or not finite, and where it
    cannot think in parallel.
    """
    check_model_folder(path)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # told of below
            **options,
        )
    except Exception as error:  # transformers, huggingface_hub and safetensors each raise their own
        raise UserError(f"no usable model at {path}: {reason(error)}{remedy}") from error
    made_up = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if made_up:
        raise UserError(f"the weights in {path} are not those of its config.json: {min(map(str, made_up))}{remedy}")
    left_out = _layers_left_out(model, loading["unexpected_keys"])
    if left_out:
        raise UserError(f"the weights in {path} are of more layers than its config.json: {min(left_out)}{remedy}")
    check_finite(model, path)
    try:
        check_decoder(model)
    except UnsupportedDecoderError as error:
        raise UserError(f"the model in {path} cannot think: {error}") from error
    return model


def _layers_left_out(model: PreTrainedModel, unexpected: Iterable[str]) -> list[str]:
    """Of the weights that the model has no place for those that are as its own, but for a number."""
    forms = {NUMBER.sub("", name) for name in model.state_dict()}
    return [name for name in unexpected if NUMBER.sub("", name) in forms]


def check_finite(model: PreTrainedModel, path: Path | str) -> None:
    """Raise UserError where a weight of the model, which was read from ``path``, is not a finite number."""
    if not all_finite(model.parameters()):
        raise UserError(f"the weights in {path} are not all finite numbers: train again, with a lower learning rate")


def all_finite(weights: Iterable[Tensor]) -> Tensor:
    """Whether all numbers are finite: a truth value () on the weights' own device."""
    return torch.stack([some.isfinite().all() for some in weights]).all()


class Spans(Dataset):
    """Spans of token ids (`pipeline.tokens`) as a model's inputs; padding is neither attended to nor a label.

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


def pick_device(device: str) -> str:
    """``cuda`` or ``cpu``, from those or ``auto``. Raises UserError where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but no CUDA GPU is usable here: set it to auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
