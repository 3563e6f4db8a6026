"""Memory of a training step on one device, in bytes."""

from dataclasses import dataclass

from pipeline.params import Train
from pipeline.plan.shape import Shape
from pipeline.plan.work import Step
from pipeline.thought.head import CHUNK_LOGITS

FLOAT = 4  # gradients, optimizer, losses and weights, but those that only autocast uses, are float32
OPTIMIZER = 2  # numbers a parameter that learns: AdamW's two moments
MOMENT = {"adamw": FLOAT, "adamw_8bit": 1}  # bytes of each
HALF = 0.6  # of the activations' bytes under autocast to bfloat16: norms and residuals stay float32
# fitted to the peaks in docs/benchmarks.md (tests/plan): layers' worth that the backward pass of one layer works on,
# with what the forward pass has kept of it or with it computed again, and copies of a chunk's logits in the head
WORKING, WORKING_AGAIN, HEAD_COPIES = 2, 4, 2


@dataclass(frozen=True)
class Memory:
    """Bytes on each device. ``gathered``: whole weights and gradients beside its shares of them."""

    weights: float
    gradients: float
    optimizer: float
    gathered: float
    activations: float
    head: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.gathered + self.activations + self.head


def training_memory(shape: Shape, step: Step, devices: int, train: Train) -> Memory:
    """At a pass's peak; weights, gradients and optimizer are shared out over the devices (FSDP2), which a step's texts
    are not. Whole gradients stay until those of thoughts and of the text are added up, and whole weights from one pass
    to the next (launchers/node.yaml)."""
    learned, checkpointing, bfloat16 = learned_numbers(shape, train), train.checkpointing, train.precision == "bfloat16"
    thinking = min(train.positions or step.tokens, step.tokens)
    sums = 1 if thinking == step.tokens else 2  # the slices' gradients beside the parameters' own
    thoughts = step.texts * thinking * step.rationales
    rows = step.positions + thoughts * step.row_tokens
    size = FLOAT * (HALF if bfloat16 else 1)
    layer = rows * size * layer_numbers(shape)
    kept = rows * size * shape.hidden if checkpointing else layer
    working = WORKING_AGAIN if checkpointing else WORKING
    # of every layer what is kept, of one what its backward pass works on, of the end what the mixing head reads
    mixing = FLOAT * shape.hidden * (step.positions + thoughts * step.lookahead) * 4
    rounded = shape.matrices if bfloat16 and train.adapt != "whole" else 0  # `learned.round_frozen`
    head = shape.hidden * shape.vocab
    copied = head if rounded and shape.tied else 0  # of the frozen embeddings, for the losses
    cast = 2 * (learned + copied) if bfloat16 and devices == 1 else 0  # what is gathered is in bfloat16 already
    activations = shape.layers * kept + working * layer + mixing + _sampling(shape, thoughts, step, size) + cast
    apart = head if train.adapt == "whole" else 0  # the gradient of the head's weight
    return Memory(
        weights=(shape.parameters * FLOAT - rounded * FLOAT / 2) / devices,
        gradients=sums * learned * FLOAT / devices,
        optimizer=OPTIMIZER * learned * MOMENT[train.optimizer] / devices,
        gathered=(2 if bfloat16 else FLOAT) * (shape.parameters + learned) if devices > 1 else 0,
        activations=activations,
        head=HEAD_COPIES * CHUNK_LOGITS * FLOAT + apart * FLOAT,
    )


def learned_numbers(shape: Shape, train: Train) -> int:
    """How many numbers are trained; adapters on all linear layers, whichever ``train.lora.modules`` names."""
    if train.adapt == "whole":
        return shape.parameters
    adapters = train.lora.rank * sum(inputs + outputs for inputs, outputs in shape.linears)
    return shape.mixing_head + (adapters if train.adapt == "lora" else 0)


def layer_numbers(shape: Shape) -> int:
    """Numbers that a decoder layer keeps of a token for its backward pass.

    The residual before each norm, both norms before and after their weight (6 D), queries and what attention gives,
    keys and values, and of the feed-forward layer the gate, its activation, the other half and their product.
    """
    return 6 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 4 * shape.ffn


def _sampling(shape: Shape, thoughts: float, step: Step, size: float) -> float:
    """Keys and values of the text and of thoughts while they are sampled."""
    return 2 * shape.keys * shape.layers * size * (step.positions + thoughts * (step.thought_tokens + 1))
