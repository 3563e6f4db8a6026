"""Choose which weights are trained, and write and read the folder of a trained model.

A folder holds the whole model, as transformers writes it, or only what was trained: `learned.safetensors` (the trained
tensors) and `learned.json` (the path of the base model, the digests of its weights, the sizes of the adapters). From a
`model.safetensors` without the base model's weights transformers would read a model that is random in part.
Adapters (LoRA, Hu et al. 2021, arXiv 2106.09685) come from peft, which only this file needs.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.errors import UserError, optional, reason
from pipeline.files import digests
from pipeline.models.auto import QuietStarConfig, QuietStarForCausalLM
from pipeline.models.base import check_finite, load_base
from pipeline.models.device import keep_memory
from pipeline.params import Train
from pipeline.thought.methods import NO_THOUGHT

LEARNED = TENSORS, ABOUT = "learned.safetensors", "learned.json"
WEIGHTS = "*.safetensors"  # the weight files of a base model


def limit_learning(model: QuietStarForCausalLM, params: Train) -> None:
    """Freeze the base model, or add LoRA adapters to it, as ``params.adapt`` says.

    The meta-tokens always learn, and so does a mixing head that starts at 0. Raises UserError if a layer in
    ``params.lora.modules`` does not exist, or if peft is not installed.
    """
    if params.adapt == "frozen":
        model.base.requires_grad_(False)
    elif params.adapt == "lora":
        try:
            add_adapters(model.base, **asdict(params.lora))
        except ValueError as error:
            raise UserError(f"train.lora.modules: {reason(error)}") from error


def add_adapters(base: PreTrainedModel, rank: int, alpha: float, modules: Sequence[str] | None = None) -> None:
    """Freeze ``base`` and put adapters of this ``rank``, scaled by ``alpha`` / rank, inside its linear layers.

    ``modules``: names of the layers that get one; None: all linear layers but the LM head. The adapters sit in the
    decoder's own layers, so the engine runs on it unchanged, and start as zero, so predictions stay the same.
    Raises ValueError if no linear layer has one of these names, and UserError if peft is not installed.
    """
    with optional("peft", "the model has adapters (train.adapt is lora)"):
        from peft import LoraConfig, inject_adapter_in_model

    layers = {name: layer for name, layer in base.base_model.named_modules() if isinstance(layer, nn.Linear | Conv1D)}
    known = {name.rpartition(".")[2] for name in layers}
    for name in modules or ():
        if name not in known:
            raise ValueError(f"no linear layer of the decoder is called {name}: there are {', '.join(sorted(known))}")
    transposed = any(isinstance(layer, Conv1D) for layer in layers.values())
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(modules or known), fan_in_fan_out=transposed)
    base.requires_grad_(False)
    inject_adapter_in_model(config, base.base_model)


def merge_adapters(base: PreTrainedModel) -> None:
    """Add the adapters to the weights of ``base``: an ordinary decoder again, with the same predictions."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(base.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            base.set_submodule(name, layer.get_base_layer())
    del base.base_model.peft_config


def round_frozen(model: QuietStarForCausalLM) -> None:
    """Keep frozen matrices in bfloat16: autocast rounds them anyway, so results are the same in half the memory.

    Embeddings, norms and biases stay in float32.
    """
    for weight in _frozen_matrices(model).values():
        weight.data = weight.data.to(torch.bfloat16)


def put(model: QuietStarForCausalLM, device: str, precision: str) -> QuietStarForCausalLM:
    """The model on ``device``, for evaluation under `device.autocast` with this ``precision``: it learns no more."""
    if precision == "bfloat16":
        model.requires_grad_(False)
        round_frozen(model)
        # a head that is the embedding table stays in float32, and autocast keeps its copies of what may learn only
        model.get_output_embeddings().weight.requires_grad_()
    return model.to(device)


def restore_frozen(model: QuietStarForCausalLM, base: PreTrainedModel) -> None:
    """Undo `round_frozen` with the weights of ``base``, the model that training started from."""
    exact = dict(base.named_parameters())
    for name, weight in _frozen_matrices(model).items():
        weight.data = exact[name].detach().clone()


def _frozen_matrices(model: QuietStarForCausalLM) -> dict[str, nn.Parameter]:
    """Return the frozen matrices of the base model (not embeddings) by their names in a base without adapters."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        f"{name}.weight".replace(".base_layer.", "."): module.weight
        for name, module in model.base.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not module.weight.requires_grad
        and id(module.weight) not in embeddings
    }


def save_trained(model: QuietStarForCausalLM, params: Train, base: Path, read: dict[str, str], folder: Path) -> None:
    """Write the model to ``folder``, whole or only what was trained, as ``params.saved`` says. Merges its adapters.

    ``base``: the folder of the base model. ``read``: the `digests` of its weights when training read them.
    """
    lora = asdict(params.lora) if params.adapt == "lora" else None
    if params.saved == "learned":
        model.config.save_pretrained(folder)
        own = {name: p for name, p in model.named_parameters() if p.requires_grad or not name.startswith("base.")}
        tensors = {name: parameter.detach() for name, parameter in own.items()}
        save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
        about = {"base": os.path.relpath(base, folder), "digests": read, "lora": lora}
        (folder / ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    if lora is not None:
        merge_adapters(model.base)
    if params.saved == "whole":
        model.save_pretrained(folder)


def base_of(folder: Path) -> Path | None:
    """Return the folder of the base model that the model in ``folder`` was trained on.

    None if ``folder`` needs no base model or does not exist. Raises UserError if the base model is missing.
    """
    if not (folder / ABOUT).is_file():
        return None
    base = Path(os.path.normpath(folder / _about(folder)["base"]))
    if not base.is_dir():
        raise UserError(f"{folder} holds only what was trained: the model that it was trained on must be in {base}")
    return base


def _about(folder: Path) -> dict:
    try:
        about = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        return {name: about[name] for name in ("base", "digests", "lora")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{folder / ABOUT} is missing or broken: run `dvc repro train`") from error


def check_trained(folder: Path) -> None:
    """Raise UserError if ``folder`` holds no trained model. Reads its configuration only, not its weights."""
    try:
        config = QuietStarConfig.get_config_dict(folder, local_files_only=True)[0]
    except (OSError, ValueError):
        config = {}  # which transformers returns for some missing files, too
    if not config:
        raise UserError(f"{folder} holds no trained model: run `dvc repro train`")
    if config.get("model_type") != QuietStarConfig.model_type:
        raise UserError(f"{folder} holds a {config.get('model_type')} model, not a trained Quiet-STaR one")


def load_trained(folder: Path) -> QuietStarForCausalLM:
    """Read the model in ``folder`` for evaluation, whole or put on its base model, with adapters merged.

    Raises UserError if ``folder`` holds no trained model, or if its base model is missing or another one.
    """
    keep_memory()
    check_trained(folder)
    base = base_of(folder)
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if base is None:
            model, loading = QuietStarForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
        else:
            about = _about(folder)
            if digests(base, WEIGHTS) != about["digests"]:
                raise UserError(f"{folder} was trained on other weights than those in {base}: run `dvc repro train`")
            decoder, learned = load_base(base), load_file(folder / TENSORS)
            adapters = {name: learned.pop(name) for name in list(learned) if name.startswith("base.")}
            state = {f"base.{name}": value for name, value in decoder.state_dict().items()} | learned
            config = QuietStarConfig.from_pretrained(folder)
            model, loading = QuietStarForCausalLM.from_pretrained(
                None, config=config, state_dict=state, dtype=decoder.dtype, **options
            )
        wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
        if wrong:
            raise UserError(f"the weights in {folder} are not those of its config.json: {min(map(str, wrong))}")
        if base is not None:
            if about["lora"] is not None:
                add_adapters(model.base, **about["lora"])
            if adapters.keys() != {name for name in model.state_dict() if ".lora_" in name}:
                raise ValueError(f"its adapters are not those that {ABOUT} describes")
            if adapters:
                model.load_state_dict(adapters, strict=False)
                merge_adapters(model.base)
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and peft raise many types
        raise UserError(f"the model in {folder} cannot be read: {reason(error)}") from error
    check_finite(model, folder, ": train again, with a lower learning rate")
    return model.eval()


def load_plain(folder: Path) -> QuietStarForCausalLM:
    """Read the base model in ``folder`` for evaluation, without thoughts. Raises UserError as `load_base` does."""
    keep_memory()
    return QuietStarForCausalLM.from_base(load_base(folder), meta_token_ids=[0], method=NO_THOUGHT).eval()


def known_positions(model: QuietStarForCausalLM) -> int | None:
    """Return how many positions the base model knows; None if its configuration does not say."""
    return getattr(model.base.config.get_text_config(), "max_position_embeddings", None)


def check_room(model: QuietStarForCausalLM, needed: int, what: str) -> None:
    """Raise UserError if ``what``, with its last thought, needs more positions (``needed``) than the model knows."""
    known = known_positions(model)
    if known is not None and needed > known:
        need = "and its last thought need" if model.has_thoughts else "needs"
        raise UserError(
            f"{what} {need} {needed} positions, but the base model has {known}: make it shorter, or thoughts"
        )
