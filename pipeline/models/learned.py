"""What of a model is trained, and a folder that holds only that: small, and put on its base model to be read.

`learned.safetensors`: the trained tensors; `learned.json`: where the base model is, its digests, adapters' sizes. It is
not `model.safetensors`, which transformers would take for the whole model and fill up with random weights.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.errors import UserError, optional, reason
from pipeline.files import digests
from pipeline.models.adapters import add_adapters, merge_adapters
from pipeline.params import Train
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

LEARNED = TENSORS, ABOUT = "learned.safetensors", "learned.json"
WEIGHTS = "*.safetensors"  # of a base model


@dataclass(frozen=True)
class Learned:
    """``base``: the base model's folder, seen from this one, and its weights' ``digests``. ``lora``: as `params.Lora`,
    None without adapters.
    """

    base: str
    digests: dict[str, str]
    lora: dict | None


def limit_learning(model: QuietStarForCausalLM, params: Train) -> None:
    """Leave of the base model to learn what ``params.adapt`` says; meta-tokens and mixing head always do.

    Raises UserError for adapters on layers that there are not, or without peft.
    """
    if params.adapt == "frozen":
        model.base.requires_grad_(False)
    elif params.adapt == "lora":
        try:
            _adapt(model, asdict(params.lora), "train.adapt is lora")
        except ValueError as error:
            raise UserError(f"train.lora.modules: {reason(error)}") from error


def round_frozen(model: QuietStarForCausalLM) -> None:
    """Keep matrices that do not learn in bfloat16, to which autocast rounds them whenever they are used.

    The same results take half the memory. Embeddings, norms and biases stay in float32.
    """
    for weight in _frozen_matrices(model).values():
        weight.data = weight.data.to(torch.bfloat16)


def restore_frozen(model: QuietStarForCausalLM, base: PreTrainedModel) -> None:
    """Undo `round_frozen` with the weights of the ``base`` that the model was made from."""
    exact = dict(base.named_parameters())
    for name, weight in _frozen_matrices(model).items():
        weight.data = exact[name].detach().clone()


def _frozen_matrices(model: QuietStarForCausalLM) -> dict[str, nn.Parameter]:
    """Those of the base model, by their names there."""
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    return {
        f"{name}.weight".replace(".base_layer.", "."): module.weight
        for name, module in model.base.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not module.weight.requires_grad
        and id(module.weight) not in embeddings
    }


def save_trained(model: QuietStarForCausalLM, params: Train, base: Path, read: dict[str, str], folder: Path) -> None:
    """Write the model to ``folder``: whole, or only what it learned on the model in ``base``. Merges its adapters.

    ``read``: the `digests` of the base model's weights when it was read.
    """
    lora = asdict(params.lora) if params.adapt == "lora" else None
    if params.saved == "learned":
        _save_learned(model, Learned(os.path.relpath(base, folder), read, lora), folder)
    if lora is not None:
        merge_adapters(model.base)
    if params.saved == "whole":
        model.save_pretrained(folder)


def _save_learned(model: QuietStarForCausalLM, about: Learned, folder: Path) -> None:
    model.config.save_pretrained(folder)
    tensors = {name: value.detach() for name, value in model.named_parameters() if value.requires_grad}
    save_file(tensors, folder / TENSORS, metadata={"format": "pt"})
    (folder / ABOUT).write_text(json.dumps(asdict(about), indent=2) + "\n", encoding="utf-8")


def base_of(folder: Path) -> Path | None:
    """The base model's folder that the model in ``folder`` is put on; None where it is whole, or where there is none.

    Raises UserError where the base model is missing. Whether it is the right one, `check_base` says.
    """
    if not (folder / ABOUT).is_file():
        return None
    base = Path(os.path.normpath(folder / _about(folder).base))
    if not base.is_dir():
        raise UserError(f"{folder} holds only what was trained: the model that it was trained on must be in {base}")
    return base


def check_base(folder: Path, base: Path) -> None:
    """Read all of the weights in ``base``. Raises UserError where the model in ``folder`` was trained on others."""
    if digests(base, WEIGHTS) != _about(folder).digests:
        raise UserError(f"{folder} was trained on other weights than those in {base}")


def load_learned(folder: Path, base: PreTrainedModel) -> QuietStarForCausalLM:
    """``base`` with what ``folder`` holds, adapters merged. Raises UserError where the two do not fit."""
    lora = _about(folder).lora
    try:
        learned = load_file(folder / TENSORS)
        model = _with_own(QuietStarConfig.from_pretrained(folder), base, learned)
        if lora is not None:
            _adapt(model, lora, f"{folder} has adapters")
            _load(model, learned)
            merge_adapters(model.base)
        elif _adapters(learned):
            raise ValueError(f"it has adapters, of which {ABOUT} does not tell")
    except UserError:
        raise
    except Exception as error:  # transformers, safetensors and peft each raise their own
        raise UserError(f"{folder} does not fit its base model: {reason(error)}") from error
    return model


def _with_own(config: QuietStarConfig, base: PreTrainedModel, learned: dict[str, Tensor]) -> QuietStarForCausalLM:
    """The whole model but for its adapters."""
    state = {f"base.{name}": value for name, value in base.state_dict().items()}
    state |= {name: learned[name] for name in learned.keys() - _adapters(learned)}
    model, loading = QuietStarForCausalLM.from_pretrained(
        None, config=config, state_dict=state, dtype=base.dtype, output_loading_info=True
    )
    wrong = [*loading["missing_keys"], *loading["unexpected_keys"], *loading["mismatched_keys"]]
    if wrong:
        raise ValueError(f"{sorted(map(str, wrong))[0]} is missing or too much")
    return model


def _load(model: QuietStarForCausalLM, learned: dict[str, Tensor]) -> None:
    adapters = _adapters(learned)
    if adapters.keys() != {name for name, value in model.base.named_parameters(prefix="base") if value.requires_grad}:
        raise ValueError("its adapters are on other layers")
    model.load_state_dict(adapters, strict=False)


def _adapters(learned: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in learned.items() if name.startswith("base.")}


def _adapt(model: QuietStarForCausalLM, lora: dict, why: str) -> None:
    with optional("peft", why):
        add_adapters(model.base, **lora)


def _about(folder: Path) -> Learned:
    try:
        about = Learned(**json.loads((folder / ABOUT).read_text(encoding="utf-8")))
        if not isinstance(about.base, str) or not isinstance(about.digests, dict):
            raise TypeError("base is no path, or digests are no names with theirs")
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder / ABOUT} is missing or broken: run `dvc repro train`") from error
    return about
