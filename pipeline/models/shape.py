"""The sizes of a decoder's layers, known without its weights."""

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from pipeline.errors import UserError, reason


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder."""

    linears: tuple[tuple[int, int], ...]  # (inputs, outputs) of every matrix in its layers
    layers: int
    hidden: int  # D
    queries: int  # heads times their size
    keys: int  # key-value heads times their size
    ffn: int
    vocab: int  # V
    tied: bool  # whether the LM head is the embedding table
    parameters: int

    @property
    def body(self) -> int:
        """Weights of the layers' matrices, which every token goes through."""
        return sum(inputs * outputs for inputs, outputs in self.linears)

    @property
    def mixing_head(self) -> int:
        """Parameters of the mixing head and of the two meta-tokens (method.md)."""
        return (2 * self.hidden + 1) * self.hidden + (self.hidden + 1) * self.hidden + self.hidden + 2 * self.hidden


def shape_of(model: PreTrainedModel) -> Shape:
    """The shape of a model, which may have no weights (device ``meta``).

    Raises ValueError for a mixture of experts, as a token goes through only some of its weights.
    """
    if any(".experts." in name for name, _ in model.named_parameters()):
        raise ValueError("it is a mixture of experts")
    config = model.config.get_text_config()
    matrices = [m for m in model.base_model.modules() if isinstance(m, torch.nn.Linear | Conv1D)]
    # GPT-2's are Conv1D
    linears = [(m.nx, m.nf) if isinstance(m, Conv1D) else (m.in_features, m.out_features) for m in matrices]
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return Shape(
        linears=tuple(linears),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        queries=config.num_attention_heads * head,
        keys=(getattr(config, "num_key_value_heads", None) or config.num_attention_heads) * head,
        ffn=max(map(max, linears)),
        vocab=config.vocab_size,
        tied=model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        parameters=sum(p.numel() for p in model.parameters()),
    )


def shape_from(config: PretrainedConfig) -> Shape:
    """The shape of the decoder that a transformers configuration describes. Raises UserError for other models."""
    try:
        with torch.device("meta"):
            return shape_of(AutoModelForCausalLM.from_config(config))
    except Exception as error:  # whatever a model of another kind lacks
        raise UserError(f"a {config.model_type} model cannot be planned: {reason(error)}") from error
