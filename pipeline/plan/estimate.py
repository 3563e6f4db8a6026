"""A run's tokens, operations, memory and disk, from its parameters alone."""

from dataclasses import dataclass, replace

from pipeline.params import BaseModel, HubSplit, Params, Train
from pipeline.plan.memory import FLOAT, Memory, learned_numbers, training_memory
from pipeline.plan.shape import Shape, hub_shape, shape_from, with_thoughts
from pipeline.plan.work import Step, adapting_flops, reading_flops, training_flops, watching_flops
from pipeline.training.pretrain import scratch_config

TOKEN_BYTES = 4  # of a token in a span
TEXT_BYTES = 4  # of a token in a text, about
COPIES = 2  # of everything that DVC keeps: the workspace's and the cache's
WAYS = 3  # of answering: with thoughts, without, and the base model
SHARED = ("train", "baseline")  # stages that a launcher shares out over devices
ANSWER_TOKENS = 4  # where evaluation thinks, of a question


@dataclass(frozen=True)
class Estimate:
    """What a run takes; operations by stage, bytes by kind."""

    shape: Shape
    learned: int  # numbers of it that training changes, or of adapters on it
    step: Step
    text_tokens: int  # that training reads, padding included
    thought_tokens: int  # that training samples
    pretraining_tokens: int
    flops: dict[str, float]
    memory: Memory
    disk: dict[str, float]

    def seconds(self, rate: float, devices: int = 1) -> float:
        """All stages one after the other, at ``rate`` operations a second a device; training alone has several."""
        shared = sum(self.flops.get(stage, 0) for stage in SHARED)
        return (sum(self.flops.values()) - shared + shared / devices) / rate


def estimate(params: Params) -> Estimate:
    """What the run with these parameters takes. Raises UserError as `hub_shape` does."""
    train, tokenize = params.train, params.tokenize
    shape = with_thoughts(_base_shape(params.base_model, tokenize.vocabulary))
    step = Step(train.batch_size, tokenize.span, train.rationales, train.thought_tokens, train.lookahead)
    passes = train.steps * train.accumulation
    return Estimate(
        shape=shape,
        learned=learned_numbers(shape, train),
        step=step,
        text_tokens=passes * step.positions,
        thought_tokens=passes * step.thoughts * step.thought_tokens,
        pretraining_tokens=_pretraining_tokens(params),
        flops=_flops(params, shape, step),
        memory=training_memory(shape, step, params.plan.devices, train),
        disk=_disk(params, shape),
    )


def _base_shape(base: BaseModel, vocabulary: int) -> Shape:
    if base.source == "hub":
        return hub_shape(base.path, base.revision)
    return shape_from(scratch_config(base.scratch, vocabulary, end=0))


def _flops(params: Params, shape: Shape, step: Step) -> dict[str, float]:
    span, methods, seeds = params.tokenize.span, params.baseline.methods, len(params.baseline.seeds)
    found = {}
    if tokens := _pretraining_tokens(params):
        found["base_model"] = 3 * reading_flops(shape, tokens, params.tokenize.pretrain_span)
    found["train"] = _trained(params.train.method, params, shape, step)
    if methods and seeds:
        found["baseline"] = seeds * sum(_trained(method, params, shape, step) for method in methods)
    thinking = step.thought_tokens + 2  # passes of one token each
    asked = _asked(params.evaluate.questions, params) * (WAYS * span + ANSWER_TOKENS * thinking)
    found["evaluate"] = reading_flops(shape, asked * (1 + len(methods) * seeds), span)
    cot = params.chain_of_thought
    length, written = span + cot.new_tokens, cot.new_tokens + cot.answer_tokens
    # with thoughts and without: the prompt and what was written are read twice, and one way thinks before each token
    read = 2 * 2 * length + written * (1 + thinking) + written
    found["chain_of_thought"] = reading_flops(shape, _asked(cot.questions, params) * cot.samples * read, length)
    found["perplexity"] = reading_flops(shape, params.perplexity.texts * span * (1 + thinking), span)
    return found


def _pretraining_tokens(params: Params) -> int:
    scratch = params.base_model.scratch
    from_scratch = params.base_model.source == "scratch"
    return scratch.steps * scratch.batch_size * params.tokenize.pretrain_span if from_scratch else 0


def _asked(questions: int | None, params: Params) -> int:
    """Of all tasks together; the parameter is of each."""
    every = params.plan.questions
    return every if questions is None else min(every, questions * len(params.tasks.files))


def _trained(method: str, params: Params, shape: Shape, step: Step) -> float:
    """Operations of training and of watching it: pauses are not sampled, continued pretraining has no thoughts."""
    train = params.train
    passes = train.steps * train.accumulation
    watched = (2 + (train.steps - 1) // train.evaluation_steps) * train.evaluation_texts / step.texts
    if method == "no_thought":
        step = replace(step, rationales=0)
    found = passes * pass_flops(shape, step, train) + watched * watching_flops(shape, step)
    if method == "pause":
        sampling = reading_flops(shape, step.thoughts * (step.thought_tokens + 1), step.tokens)
        found -= (passes + watched) * sampling
    return found


def pass_flops(shape: Shape, step: Step, train: Train) -> float:
    """Operations of one pass of training; adapters on all linear layers, whichever ``train.lora.modules`` names."""
    if train.adapt == "whole":
        return training_flops(shape, step)
    return adapting_flops(shape, step, train.lora.rank if train.adapt == "lora" else 0)


def _disk(params: Params, shape: Shape) -> dict[str, float]:
    found = {"models": _saved_numbers(params, shape) * FLOAT}
    if params.base_model.source == "hub":
        found["hub cache"] = shape.parameters * FLOAT / 2
    documents = _documents(params)
    found["corpus"] = COPIES * sum(documents.values()) * params.plan.document_bytes
    tokens = 0.0
    for split, count in documents.items():
        packed = params.tokenize.packed or split == "pretrain"
        tokens += count * (params.plan.document_bytes / TEXT_BYTES if packed else params.tokenize.span)
    found["tokens"] = COPIES * TOKEN_BYTES * tokens
    return found


def _saved_numbers(params: Params, shape: Shape) -> int:
    """Of the base model, of each that is trained and of the release, which shares the cache of a whole one."""
    trained = 1 + len(params.baseline.methods) * len(params.baseline.seeds)
    if params.train.saved == "learned":
        return COPIES * (2 * shape.parameters + trained * learned_numbers(shape, params.train))
    return (COPIES * (1 + trained) + 1) * shape.parameters


def _documents(params: Params) -> dict[str, int]:
    """How many documents each split has."""
    splits = ["train", "heldout"] + ["pretrain"] * (params.base_model.source == "scratch")
    if params.corpus.source == "microworld":
        return {split: getattr(params.corpus.microworld, f"{split}_documents") for split in splits}
    sources: dict[str, HubSplit] = {split: getattr(params.corpus.hub, split) for split in splits}
    return {split: source.rows or params.plan.documents for split, source in sources.items()}
