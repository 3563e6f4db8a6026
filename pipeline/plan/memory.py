"""Memory of a training step on one device, in bytes."""

from pipeline.params import Train
from pipeline.plan.shape import Shape
from pipeline.plan.work import Step
from pipeline.thought.head import CHUNK_LOGITS

FLOAT = 4  # bytes: gradients, moments, losses and weights are float32, except weights that only autocast uses
MOMENTS = 2  # AdamW's, of each trainable parameter
MOMENT = {"adamw": FLOAT, "adamw_8bit": 1}  # bytes of each moment
AUTOCAST_SHARE = 0.6  # activation bytes under bfloat16 autocast, relative to float32: norms and residuals stay float32
# fitted to the peaks in docs/benchmarks.md: backward-pass workspace in units of one layer's activations, without and
# with checkpointing; and logits copies in the head
WORKSPACE, WORKSPACE_CHECKPOINTING, HEAD_COPIES = 2, 4, 2


def training_memory(shape: Shape, step: Step, devices: int, train: Train) -> dict[str, float]:
    """Bytes on each device at the peak of a pass, by kind.

    Weights, gradients and optimizer are sharded over the devices (FSDP2), the texts of a pass are not. Whole gradients
    stay until those of thoughts and of the text are summed, whole weights until the next pass (launchers/node.yaml).
    """
    learned, bfloat16 = trainable_parameters(shape, train), train.precision == "bfloat16"
    thinking = min(train.positions or step.tokens, step.tokens)
    sums = 1 if thinking == step.tokens else 2  # slices keep gradients beside the parameters' own
    thoughts = step.texts * thinking * step.rationales
    rows = step.positions + thoughts * step.row_tokens
    size = FLOAT * (AUTOCAST_SHARE if bfloat16 else 1)
    # what a layer keeps of a token: the residual before each norm and both norms before and after their weight (6 D),
    # queries, attention's output, keys, values, and the feed-forward layer's gate, activation, other half and product
    layer = rows * size * (6 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 4 * shape.ffn)
    kept = rows * size * shape.hidden if train.checkpointing else layer
    workspace = WORKSPACE_CHECKPOINTING if train.checkpointing else WORKSPACE
    mixing = FLOAT * shape.hidden * (step.positions + thoughts * step.lookahead) * 4  # what the mixing head reads
    cache = 2 * shape.keys * shape.layers * size * (step.positions + thoughts * (step.thought_tokens + 1))
    head = shape.hidden * shape.vocab
    matrices = shape.body if shape.tied else shape.body + head
    rounded = matrices if bfloat16 and train.adapt != "whole" else 0  # frozen weights, in bfloat16
    copied = head if rounded and shape.tied else 0  # of the frozen embeddings, for the losses
    # autocast's bfloat16 copies of weights, booked under activations; gathered weights are in bfloat16 already
    cast = 2 * (learned + copied) if bfloat16 and devices == 1 else 0
    head_gradient = head if train.adapt == "whole" else 0
    return {
        "weights": (shape.parameters * FLOAT - rounded * FLOAT / 2) / devices,
        "gradients": sums * learned * FLOAT / devices,
        "optimizer": MOMENTS * learned * MOMENT[train.optimizer] / devices,
        # whole weights and gradients, beside the device's shards
        "gathered": (2 if bfloat16 else FLOAT) * (shape.parameters + learned) if devices > 1 else 0,
        "activations": shape.layers * kept + workspace * layer + mixing + cache + cast,
        "head": (HEAD_COPIES * CHUNK_LOGITS + head_gradient) * FLOAT,
    }


def trainable_parameters(shape: Shape, train: Train) -> int:
    """How many parameters are trained; adapters on all linear layers, whichever ``train.lora.modules`` names."""
    if train.adapt == "whole":
        return shape.parameters
    adapters = train.lora.rank * sum(inputs + outputs for inputs, outputs in shape.linears)
    return shape.mixing_head + (adapters if train.adapt == "lora" else 0)
