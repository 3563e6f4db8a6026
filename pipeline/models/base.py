"""Read a base model and its tokenizer, from a folder or from the Hugging Face hub, or describe a small new one.

The stage base_model depends on this file, so it does not import the thought model: an edit of the engine must not make
DVC pretrain again.
"""

import re
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.logging import disable_progress_bar

from pipeline.errors import UserError, reason
from pipeline.files import check_model_folder
from pipeline.params import Scratch
from pipeline.thought.decoder import UnsupportedDecoderError, check_decoder

LONGEST_TEXT = 4096  # tokens that a model from scratch has position ids for
NUMBER = re.compile(r"\d+")

disable_progress_bar()  # transformers' own, of weights that are read and written: stages show theirs


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """Read the tokenizer that a stage wrote to ``folder``. Raises UserError if there is none."""
    check_made(folder)
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers raise many types
        raise UserError(f"{folder} holds no usable tokenizer: run `dvc repro` to make it again") from error


def check_made(folder: Path) -> None:
    """Raise UserError if ``folder`` is missing: transformers would look for a hub model of this name."""
    if not folder.is_dir():
        raise UserError(f"the folder {folder} is missing: run `dvc repro` to make it again")


def read_model(path: Path | str, remedy: str = "", **options: object) -> PreTrainedModel:
    """Read a causal language model in float32 from the folder ``path``, or from the hub if ``path`` is a model's name.

    ``options`` go to transformers' ``from_pretrained``. Error messages about the files end with ``remedy``.
    Raises UserError if the model is missing, if its weights are incomplete, not finite or not in safetensors files, and
    if thoughts cannot run in parallel on this architecture.
    """
    check_model_folder(path)
    try:
        model, loading = AutoModelForCausalLM.from_pretrained(
            path,
            use_safetensors=True,
            dtype="float32",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, in one line
            **options,
        )
    except Exception as error:  # transformers, huggingface_hub and safetensors raise many types
        raise UserError(f"no usable model at {path}: {reason(error)}{remedy}") from error
    otherwise = remedy or ": download it again, or name another model"
    made_up = [*loading["missing_keys"], *loading["mismatched_keys"]]
    if made_up:
        raise UserError(f"the weights in {path} are not those of its config.json: {min(map(str, made_up))}{otherwise}")
    # other unexpected weights are harmless (a head of another task), but weights of further layers are not
    known = {NUMBER.sub("", name) for name in model.state_dict()}
    further = [name for name in loading["unexpected_keys"] if NUMBER.sub("", name) in known]
    if further:
        raise UserError(f"the weights in {path} are of more layers than its config.json: {min(further)}{otherwise}")
    check_finite(model, path, otherwise)
    try:
        check_decoder(model)
    except UnsupportedDecoderError as error:
        raise UserError(f"the model in {path} cannot think: {error}") from error
    return model


def load_base(folder: Path) -> PreTrainedModel:
    """Read the base model that a stage wrote to ``folder``. Raises UserError as `read_model` does."""
    check_made(folder)
    return read_model(folder, "; run `dvc repro` to make it again", local_files_only=True)


def check_finite(model: PreTrainedModel, path: Path | str, remedy: str) -> None:
    """Raise UserError, whose message ends with ``remedy``, if a weight read from ``path`` is infinite or no number."""
    if not all_finite(model.parameters()):
        raise UserError(f"the weights in {path} are not all finite numbers{remedy}")


def all_finite(weights: Iterable[Tensor]) -> Tensor:
    """Return whether all numbers are finite, as a bool tensor () on the device of ``weights``."""
    return torch.stack([some.isfinite().all() for some in weights]).all()


def scratch_config(scratch: Scratch, vocabulary: int, end: int) -> object:
    """The configuration of a small decoder with new weights."""
    return AutoConfig.for_model(
        scratch.architecture,
        vocab_size=vocabulary,
        hidden_size=scratch.hidden_size,
        intermediate_size=scratch.ffn_size,
        num_hidden_layers=scratch.layers,
        num_attention_heads=scratch.heads,
        num_key_value_heads=scratch.key_value_heads,
        head_dim=scratch.hidden_size // scratch.heads,
        max_position_embeddings=LONGEST_TEXT,
        initializer_range=scratch.init_std,
        tie_word_embeddings=scratch.tied_embeddings,
        bos_token_id=None,
        eos_token_id=end,
    )
