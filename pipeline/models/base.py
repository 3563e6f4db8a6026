"""The base model and its tokenizer, as stages read them from folders or from the hub."""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from pipeline.errors import UserError, reason
from pipeline.files import check_model_folder
from pipeline.thought.decoder import UnsupportedDecoderError, check_decoder

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


def load_base(folder: Path) -> PreTrainedModel:
    """The base model that a stage wrote to ``folder``. Raises UserError where there is none that can think."""
    check_made(folder)
    return read_model(folder, "; run `dvc repro` to make it again", local_files_only=True)


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
