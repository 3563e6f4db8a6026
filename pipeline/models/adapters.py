"""Low-rank adapters on a decoder (LoRA, Hu et al. 2021, arXiv 2106.09685), through peft, which only this file needs.

They sit inside the decoder's own layers, so that everything else of this package runs on it as it is.
"""

from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def add_adapters(base: PreTrainedModel, rank: int, alpha: float, modules: Sequence[str] | None = None) -> None:
    """Freeze ``base`` and put adapters on its linear layers with the names ``modules``; None: on all but the LM head.

    They are of ``rank``, scaled by ``alpha`` / rank, and change nothing until they are trained.
    Raises ValueError for a name that no such layer has, and ModuleNotFoundError without peft.
    """
    from peft import LoraConfig, inject_adapter_in_model

    layers = [(name, layer) for name, layer in base.base_model.named_modules() if isinstance(layer, nn.Linear | Conv1D)]
    known = {name.rpartition(".")[2] for name, _ in layers}
    for name in modules or ():
        if name not in known:
            raise ValueError(f"no linear layer of the decoder is called {name}: there are {', '.join(sorted(known))}")
    transposed = any(isinstance(layer, Conv1D) for _, layer in layers)
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=sorted(modules or known), fan_in_fan_out=transposed)
    base.requires_grad_(False)
    inject_adapter_in_model(config, base.base_model)


def merge_adapters(base: PreTrainedModel) -> None:
    """Add what `add_adapters` put on ``base`` to its weights: an ordinary decoder again, with the same predictions."""
    from peft.tuners.lora import LoraLayer

    for name, layer in list(base.named_modules()):
        if isinstance(layer, LoraLayer):
            layer.merge()
            base.set_submodule(name, layer.get_base_layer())
    del base.base_model.peft_config
