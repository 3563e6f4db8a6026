"""Estimate a run's tokens, operations, memory and disk from its parameters alone."""

from dataclasses import dataclass, replace

from pipeline.evaluation.names import MEAN_SAMPLES, UNTRAINED
from pipeline.models.base import scratch_config
from pipeline.models.shape import Shape, shape_from
from pipeline.models.work import Step, learned_rank, pass_flops, reading_flops, thinking_share
from pipeline.params import Params, Stage, Train
from pipeline.plan.known import hub_shape
from pipeline.thought.head import chunk_logits
from pipeline.thought.methods import METHODS
from pipeline.thought.objective import NOTHING, PAUSES, SAMPLED
from pipeline.training.quiet_star.schedule import in_all, inner_epochs, settings_of

MEASURED = ("evaluate", "perplexity", "chain_of_thought")  # stages with a launcher of their own
TOKEN_BYTES = 4  # of a token in a span
TEXT_BYTES = 4  # of a token's text, roughly
COPIES = 2  # of everything that DVC keeps: in the workspace and in the cache
# what stands in the thought's place in evaluate and in perplexity, beside nothing: the arm's own thought, another
# text's, random tokens; in evaluate also one with the same last token and, untrained, a sample and the mean of 16,
# which reads the prompt once
WAYS = {SAMPLED: (4, 3), PAUSES: (1, 1), NOTHING: (0, 0)}
SAMPLED_WAYS, SAMPLES = 2, 1 + MEAN_SAMPLES
PLACES = 4  # of a question at which evaluation thinks
FLOAT = 4  # bytes: gradients, moments, losses and weights are float32, except weights that only autocast uses
MOMENTS = {"adamw": 2 * FLOAT, "adamw_8bit": 2}  # bytes of the optimizer's two moments of a parameter
AUTOCAST_SHARE = 0.6  # activation bytes under bfloat16 autocast, relative to float32: norms and residuals stay float32
# fitted to the peaks in docs/benchmarks.md: backward-pass workspace in units of one layer's activations, without and
# with checkpointing; and logits copies in the head
WORKSPACE, HEAD_COPIES = {False: 2, True: 4}, 2


@dataclass(frozen=True)
class Estimate:
    """What a run takes: operations by stage, bytes by kind."""

    shape: Shape
    learned: int  # parameters that training changes, adapters included
    tokens: dict[str, int]  # that are read (padding included) or sampled
    flops: dict[str, float]
    launched: list[str]  # stages that several devices share
    memory: dict[str, float]  # on each device
    disk: dict[str, float]

    def seconds(self, rate: float, devices: int = 1) -> float:
        """Time of all stages in turn at ``rate`` operations a second per device; ``launched`` stages use several."""
        return sum(flops / (devices if stage in self.launched else 1) for stage, flops in self.flops.items()) / rate


def estimate(params: Params) -> Estimate:
    """What the run with these parameters takes. Raises UserError as `hub_shape` does."""
    base, train, tokenize, plan = params.base_model, in_all(params.train), params.tokenize, params.plan
    if base.source == "hub":
        shape = hub_shape(base.model, base.revision)
    else:
        shape = shape_from(scratch_config(base.scratch, tokenize.vocabulary, end=0))
    pretraining_tokens = base.pretraining.steps * base.pretraining.batch_size * tokenize.pretrain_span
    shape = replace(shape, parameters=shape.parameters + shape.mixing_head)
    # where a marker says where to think, every position is the most that it can be
    share = thinking_share(train.thinking, tokenize.span) or 1.0
    step = Step(train.batch_size, tokenize.span, train.rationales, train.thought_tokens, train.lookahead, share)
    stages = [(stage.steps, _in_stage(step, stage)) for stage in train.every_stage]
    learned = trainable_parameters(shape, train)
    trained = [method for method in params.arms.methods if METHODS[method].trains]
    sampling = [method for method in trained if METHODS[method].thoughts == SAMPLED]
    return Estimate(
        shape=shape,
        learned=learned,
        tokens={
            "pretraining": pretraining_tokens,
            "text in training": train.steps * train.accumulation * step.positions,
            # of the arm that samples most
            "thoughts in training": max(
                (
                    sum(_batches(train, method, steps) * some.thoughts * some.thought_tokens for steps, some in stages)
                    for method in sampling
                ),
                default=0,
            ),
        },
        flops=_flops(params, shape, step, pretraining_tokens),
        launched=["train", *(stage for stage in MEASURED if getattr(params, stage).launcher != "single")],
        memory=max(
            (training_memory(shape, some, plan.devices, train) for _, some in stages),
            key=lambda memory: sum(memory.values()),
        ),
        disk=_disk(params, shape, learned, len(params.arms.seeds) * len(trained), pretraining_tokens > 0),
    )


def _disk(params: Params, shape: Shape, learned: float, arms: int, pretrains: bool) -> dict[str, float]:
    """Bytes of what the run leaves, DVC's cache included; ``arms`` of METHOD-SEED train ``learned`` numbers each."""
    if params.train.saved == "learned":  # base model and release are whole
        numbers = COPIES * (2 * shape.parameters + arms * learned)
    else:  # the release shares the cache of the trained model
        numbers = (COPIES * (1 + arms) + 1) * shape.parameters
    disk = {"models": numbers * FLOAT}
    if params.base_model.source == "hub":
        disk["hub cache"] = shape.parameters * FLOAT / 2
    disk["corpus"] = disk["tokens"] = 0.0
    for split in ("train", "heldout", "pretrain") if pretrains else ("train", "heldout"):
        if params.corpus.source == "microworld":
            documents = getattr(params.corpus.microworld, f"{split}_documents")
        else:
            documents = getattr(params.corpus.hub, split).rows or params.plan.documents
        packed = params.tokenize.packed or split == "pretrain"
        tokens = documents * (params.plan.document_bytes / TEXT_BYTES if packed else params.tokenize.span)
        disk["corpus"] += COPIES * documents * params.plan.document_bytes
        disk["tokens"] += COPIES * TOKEN_BYTES * tokens
    return disk


def _flops(params: Params, shape: Shape, step: Step, pretraining_tokens: int) -> dict[str, float]:
    train, cot, span = params.train, params.chain_of_thought, params.tokenize.span
    methods, seeds = params.arms.methods, len(params.arms.seeds)

    def training(method: str) -> float:
        """Training and its held-out losses: no thoughts in continued pretraining, a pause a position, not sampled."""
        kind, found = METHODS[method].thoughts, 0.0
        own = replace(step, rationales={NOTHING: 0, PAUSES: 1, SAMPLED: step.rationales}[kind])
        for i, stage in enumerate(settings_of(train, method).every_stage):
            own, passes = _in_stage(own, stage), stage.steps * train.accumulation
            batches = _batches(train, method, stage.steps)
            times = (not i) + (1 + (stage.steps - 1) // train.evaluation_steps if stage.steps else 0)
            watched = times * train.evaluation_texts / step.texts
            found += passes * pass_flops(shape, own, learned_rank(train))
            found += watched * pass_flops(shape, replace(own, share=1.0), backward=False)
            chooses, averages = train.thinking.where in ("entropy", "gate"), train.ema is not None
            if kind != NOTHING:  # read once more, to choose positions, and by the averaged weights
                found += (batches * chooses + passes * averages) * reading_flops(shape, step.positions, step.tokens)
            not_sampled = passes + watched if kind == PAUSES else passes - batches
            found -= not_sampled * reading_flops(shape, own.thoughts * own.thought_tokens, own.tokens)
        return found

    def asked(questions: int | None) -> int:
        """Questions of all tasks together; the parameter is per task."""
        every = params.plan.questions
        return every if questions is None else min(every, questions * len(params.tasks.files))

    found = {}
    if pretraining_tokens:
        found["base_model"] = 3 * reading_flops(shape, pretraining_tokens, params.tokenize.pretrain_span)
    found["train"] = seeds * sum(map(training, methods))
    thinking = step.thought_tokens + 2  # passes of one token each
    evaluated, measured = map(sum, zip(*(WAYS[METHODS[method].thoughts] for method in methods), strict=True))
    evaluated += train.gate * sum(METHODS[method].trains and METHODS[method].thoughts != NOTHING for method in methods)
    untrained = UNTRAINED in methods
    read = (len(methods) + evaluated + SAMPLED_WAYS * untrained) * span
    read += (evaluated + SAMPLES * untrained) * PLACES * thinking
    found["evaluate"] = reading_flops(shape, seeds * asked(params.evaluate.questions) * read, span)
    read = 2 * len(methods) + measured * thinking  # twice, as the model before training reads the text too
    found["perplexity"] = reading_flops(shape, seeds * params.perplexity.texts * span * read, span)
    length, written = span + cot.new_tokens, cot.new_tokens + cot.answer_tokens
    # the first arm, without thoughts and, if it has any, with one before each token; each reads a text twice
    thinks = METHODS[methods[0]].thoughts != NOTHING
    read = (1 + thinks) * (2 * length + written) + thinks * written * thinking
    found["chain_of_thought"] = reading_flops(shape, asked(cot.questions) * cot.samples * read, length)
    return found


def _batches(train: Train, method: str, steps: int) -> int:
    """Passes of ``steps`` optimizer steps over new texts, which sample thoughts: inner epochs use them again."""
    return -(-steps // inner_epochs(train, method)) * train.accumulation


def _in_stage(step: Step, stage: Stage) -> Step:
    return replace(step, thought_tokens=stage.thought_tokens, lookahead=stage.lookahead)


def training_memory(shape: Shape, step: Step, devices: int, train: Train) -> dict[str, float]:
    """Bytes on each device at the peak of a pass, by kind.

    Weights, gradients and optimizer are sharded over the devices (FSDP2), the texts of a pass are not. Whole gradients
    stay until those of thoughts and of the text are summed, whole weights until the next pass (launchers/node.yaml).
    """
    learned, bfloat16 = trainable_parameters(shape, train), train.precision == "bfloat16"
    most = step.thoughts / step.rationales / step.texts  # positions of a text
    thinking = min(train.positions or most, most)
    sums = 1 if thinking == most else 2  # slices keep gradients beside the parameters' own
    sums += train.clip == "apart"  # those of the policy
    thoughts = step.texts * thinking * step.rationales
    rows = step.positions + thoughts * step.row_tokens
    size = FLOAT * (AUTOCAST_SHARE if bfloat16 else 1)
    # what a layer keeps of a token: the residual before each norm and both norms before and after their weight (6 D),
    # queries, attention's output, keys, values, and the feed-forward layer's gate, activation, other half and product
    layer = rows * size * (6 * shape.hidden + 2 * shape.queries + 2 * shape.keys + 4 * shape.ffn)
    kept = rows * size * shape.hidden if train.checkpointing else layer
    mixing = FLOAT * shape.hidden * (step.positions + thoughts * step.lookahead) * 4  # what the mixing head reads
    cache = 2 * shape.keys * shape.layers * size * (step.positions + thoughts * step.thought_tokens)
    head, logits = shape.hidden * shape.vocab, chunk_logits("cuda" if train.device == "cuda" else "cpu", bfloat16)
    matrices = shape.body if shape.tied else shape.body + head
    rounded = matrices if bfloat16 and train.adapt != "whole" else 0  # frozen weights, in bfloat16
    copied = head if rounded and shape.tied else 0  # of the frozen embeddings, for the losses
    # autocast's bfloat16 copies of weights, booked under activations; gathered weights are in bfloat16 already
    cast = 2 * (learned + copied) if bfloat16 and devices == 1 else 0
    return {
        "weights": (shape.parameters * FLOAT - rounded * FLOAT / 2) * (1 + (train.ema is not None)) / devices,
        "gradients": sums * learned * FLOAT / devices,
        "optimizer": learned * MOMENTS[train.optimizer] / devices,
        # whole weights and gradients, beside the device's shards
        "gathered": (2 if bfloat16 else FLOAT) * (shape.parameters + learned) if devices > 1 else 0,
        "activations": shape.layers * kept + WORKSPACE[train.checkpointing] * layer + mixing + cache + cast,
        "head": (HEAD_COPIES * logits + (head if train.adapt == "whole" else 0)) * FLOAT,
    }


def weight_bytes(shape: Shape, precision: str) -> float:
    """Bytes of a model's weights in evaluation, in which the embeddings stay in float32 (`models.trained.put`)."""
    if precision == "float32":
        return FLOAT * shape.parameters
    head = shape.hidden * shape.vocab  # a copy of it, where it is the embeddings
    matrices = shape.body if shape.tied else shape.body + head
    return FLOAT * shape.parameters - FLOAT / 2 * matrices + (FLOAT / 2 * head if shape.tied else 0)


def trainable_parameters(shape: Shape, train: Train) -> int:
    """How many parameters are trained; adapters on all linear layers, whichever ``train.lora.modules`` names."""
    if train.adapt == "whole":
        return shape.parameters
    adapters = train.lora.rank * sum(inputs + outputs for inputs, outputs in shape.linears)
    return shape.mixing_head + (adapters if train.adapt == "lora" else 0)
