"""What params.yaml may say: one dataclass a section, and the checks that types alone cannot express."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline import typed_yaml
from pipeline.errors import UserError

PARAMS_FILE = Path("params.yaml")
LONGEST_TEXT = 4096  # tokens that a model from scratch has position ids for
MILLION = 10**6  # far more than any run has; of texts, passes and steps the product is a length that Python can count


def at_least(least: float, at_most: float | None = None, default: object = MISSING) -> Any:
    """A number that must not be below ``least``, nor above ``at_most``."""
    return field(default=default, metadata={"at least": least, "at most": at_most})


def a_seed() -> Any:
    return at_least(0, at_most=2**32 - 1)  # what numpy's generator takes


def a_size(least: int = 1) -> Any:
    """How many there are of what is gone through or held in memory."""
    return at_least(least, at_most=MILLION)


def above(bound: float, at_most: float | None = None) -> Any:
    """A number that must be greater than ``bound``, and not above ``at_most``."""
    return field(default=MISSING, metadata={"above": bound, "at most": at_most})


def one_of(*names: str) -> Any:
    """One of these words."""
    return field(default=MISSING, metadata={"one of": names})


@dataclass
class HubSplit:
    """Rows of a data set: a hub name or a local folder in the hub's layout, and how many of them."""

    path: str = MISSING
    name: str | None = None
    split: str = MISSING
    revision: str | None = None
    columns: str | None = None
    rows: int | None = at_least(1, default=None)


@dataclass
class Hub:
    pretrain: HubSplit = field(default_factory=HubSplit)
    train: HubSplit = field(default_factory=HubSplit)
    heldout: HubSplit = field(default_factory=HubSplit)


@dataclass
class MicroWorld:
    pretrain_documents: int = at_least(1)
    train_documents: int = at_least(1)
    heldout_documents: int = at_least(1)
    probe_documents: int = at_least(1)
    questions: int = at_least(1)
    steps: int = at_least(1)
    aside_share: float = at_least(0, at_most=1)


@dataclass
class Corpus:
    seed: int = a_seed()
    source: str = one_of("microworld", "hub")
    microworld: MicroWorld = field(default_factory=MicroWorld)
    hub: Hub = field(default_factory=Hub)


@dataclass
class Tasks:
    files: list[str] = MISSING
    root: str | None = None


@dataclass
class Tokenize:
    seed: int = a_seed()
    vocabulary: int = a_size(258)  # every byte, padding and the end of a document
    pretrain_span: int = a_size(2)
    span: int = a_size(3)  # a token that thinks, its next one, and one after it
    packed: bool = MISSING


@dataclass
class Scratch:
    architecture: str = one_of("llama", "mistral", "qwen2", "qwen3", "gemma")
    hidden_size: int = a_size()
    layers: int = at_least(1, at_most=1000)
    heads: int = a_size()
    key_value_heads: int = a_size()
    ffn_size: int = a_size()
    init_std: float = above(0, at_most=1)
    tied_embeddings: bool = MISSING
    steps: int = a_size()
    batch_size: int = a_size()
    learning_rate: float = above(0)
    warmup_steps: int = at_least(0)
    weight_decay: float = at_least(0)


@dataclass
class BaseModel:
    seed: int = a_seed()
    source: str = one_of("scratch", "hub")
    path: str | None = None
    revision: str | None = None
    scratch: Scratch = field(default_factory=Scratch)


METHODS = ("quiet_star", "pause", "no_thought")


@dataclass
class Lora:
    rank: int = a_size()
    alpha: float = above(0)
    modules: list[str] | None = None


@dataclass
class Train:
    seed: int = a_seed()
    launcher: str = MISSING
    method: str = one_of(*METHODS)
    thought_tokens: int = a_size()
    lookahead: int = at_least(1)
    rationales: int = a_size()
    meta_token_text: str = MISSING
    meta_token_scale: float = above(0)
    policy_weight: float = at_least(0)
    policy_temperature: float = above(0)
    steps: int = a_size()
    batch_size: int = a_size()
    accumulation: int = a_size()
    learning_rate: float = above(0)
    mixing_head_learning_rate: float = above(0)
    warmup_steps: int = at_least(0)
    weight_decay: float = at_least(0)
    gradient_clip: float = above(0)
    log_steps: int = at_least(1)
    evaluation_steps: int = at_least(1)
    evaluation_texts: int = at_least(1)
    device: str = one_of("auto", "cpu", "cuda")
    attention: str = one_of("auto", "reference", "blocked", "flex")
    positions: int | None = at_least(1, default=None)
    checkpointing: bool = MISSING
    precision: str = one_of("float32", "bfloat16")
    adapt: str = one_of("whole", "lora", "frozen")
    lora: Lora = field(default_factory=Lora)
    saved: str = one_of("whole", "learned")
    optimizer: str = one_of("adamw", "adamw_8bit")


@dataclass
class Baseline:
    methods: list[str] = MISSING
    seeds: list[int] = MISSING


@dataclass
class Evaluate:
    seed: int = a_seed()
    questions: int | None = at_least(1, default=None)
    batch_size: int = a_size()
    thought_temperature: float = at_least(0)
    bootstrap_samples: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class Compare:
    seed: int = a_seed()
    bootstrap_samples: int = a_size()


@dataclass
class ChainOfThought:
    seed: int = a_seed()
    questions: int | None = at_least(1, default=None)
    samples: int = a_size()
    temperature: float = above(0)
    thought_temperature: float = at_least(0)
    new_tokens: int = a_size()
    answer_tokens: int = a_size()
    batch_size: int = a_size()
    bootstrap_samples: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class Perplexity:
    seed: int = a_seed()
    texts: int = at_least(1)
    batch_size: int = a_size()
    thought_temperature: float = at_least(0)
    bootstrap_samples: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class Report:
    passages: int = at_least(1)


@dataclass
class Plan:
    devices: int = at_least(1)
    device_memory: float = above(0)
    flops: float = above(0)
    disk: float | None = at_least(0, default=None)
    document_bytes: int = at_least(1)
    documents: int = at_least(0)
    questions: int = at_least(0)


@dataclass
class Params:
    corpus: Corpus = field(default_factory=Corpus)
    tasks: Tasks = field(default_factory=Tasks)
    tokenize: Tokenize = field(default_factory=Tokenize)
    base_model: BaseModel = field(default_factory=BaseModel)
    train: Train = field(default_factory=Train)
    baseline: Baseline = field(default_factory=Baseline)
    evaluate: Evaluate = field(default_factory=Evaluate)
    compare: Compare = field(default_factory=Compare)
    chain_of_thought: ChainOfThought = field(default_factory=ChainOfThought)
    perplexity: Perplexity = field(default_factory=Perplexity)
    report: Report = field(default_factory=Report)
    plan: Plan = field(default_factory=Plan)


def load(path: Path = PARAMS_FILE, changes: Mapping[str, object] | None = None) -> Params:
    """The parameters in ``path``, with ``changes`` by dotted name, checked.

    Raises UserError, in one line, for what cannot be run.
    """
    try:
        params = typed_yaml.load(path, Params, changes)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run from the project's root") from error
    for problem in _problems(params):
        raise UserError(f"{path}: {problem}")
    return params


def _problems(params: Params) -> Iterator[str]:
    """What no run can have, one line each."""
    yield from _out_of_bounds(params, "")
    yield from _impossible_sizes(params)
    yield from _impossible_lists(params)
    yield from _impossible_learning(params)
    if params.base_model.source == "hub" and not params.base_model.path:
        yield "base_model.path is missing: with base_model.source hub it names a hub model or a local folder"
    for split in ("pretrain", "train", "heldout"):
        source = getattr(params.corpus.hub, split)
        if not source.path:
            yield f"corpus.hub.{split}.path is empty: name a hub data set or a local folder"
        columns = source.columns
        if columns is not None and columns.count("+") > 1:
            yield f"corpus.hub.{split}.columns is {columns}, but must name one column, or two with a + between"
    if not params.train.meta_token_text:
        yield "train.meta_token_text is empty: the meta-tokens start as the embedding of this text"


def _out_of_bounds(section: object, prefix: str) -> Iterator[str]:
    for entry in fields(section):
        name, value = f"{prefix}{entry.name}", getattr(section, entry.name)
        if is_dataclass(value):
            yield from _out_of_bounds(value, f"{name}.")
        elif value is not None and not _within(value, entry.metadata):
            bounds = " and ".join(
                f"{how} {_listed(bound)}" for how, bound in entry.metadata.items() if bound is not None
            )
            finite = "" if _finite(value) else "a finite number "
            yield f"{name} is {value}, but must be {finite}{bounds}".rstrip()


def _within(value: object, bounds: Mapping[str, Any]) -> bool:
    return _finite(value) and all(
        bound is None
        or (how == "at least" and value >= bound)
        or (how == "at most" and value <= bound)
        or (how == "above" and value > bound)
        or (how == "one of" and value in bound)
        for how, bound in bounds.items()
    )


def _finite(value: object) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _listed(bound: object) -> str:
    return ", ".join(bound) if isinstance(bound, tuple) else str(bound)


def _impossible_lists(params: Params) -> Iterator[str]:
    if not params.tasks.files:
        yield "tasks.files is empty: name at least one task file"
    for name in ("methods", "seeds"):
        values = getattr(params.baseline, name)
        if len(set(values)) < len(values):
            yield f"baseline.{name} is {values}, but must name nothing twice"
    for method in params.baseline.methods:
        if method not in METHODS:
            yield f"baseline.methods has {method}, but a method is one of {_listed(METHODS)}"
    if not all(0 <= seed < 2**32 for seed in params.baseline.seeds):
        yield f"baseline.seeds is {params.baseline.seeds}, but a seed must be at least 0 and at most {2**32 - 1}"


def _impossible_learning(params: Params) -> Iterator[str]:
    train, baseline = params.train, params.baseline
    if train.adapt == "whole" and train.saved == "learned":
        yield "train.saved is learned, but with train.adapt whole that is the whole model: set one of them"
    if train.lora.modules == []:
        yield "train.lora.modules is empty: name linear layers, or null for all of them"
    if train.adapt == "frozen":
        for name, some in (("train.method", [train.method]), ("baseline.methods", baseline.methods)):
            if "no_thought" in some:
                yield (
                    f"{name} has no_thought, which has nothing to learn on a frozen base model (train.adapt): "
                    "take it out, or set train.adapt to lora"
                )


def _impossible_sizes(params: Params) -> Iterator[str]:
    train, tokenize, scratch = params.train, params.tokenize, params.base_model.scratch
    if train.lookahead > tokenize.span - 2:
        yield (
            f"train.lookahead is {train.lookahead}, but in a span of {tokenize.span} tokens (tokenize.span) a thought "
            f"has at most {tokenize.span - 2} tokens after it"
        )
    room = LONGEST_TEXT - tokenize.span - train.thought_tokens - 1 - train.lookahead
    if params.base_model.source == "scratch" and room < 0:
        yield (
            f"tokenize.span ({tokenize.span}), train.thought_tokens ({train.thought_tokens}) and train.lookahead "
            f"({train.lookahead}) leave no room for a thought: a model from scratch has {LONGEST_TEXT} positions"
        )
    if scratch.hidden_size % scratch.heads or scratch.heads % scratch.key_value_heads:
        yield (
            f"base_model.scratch: heads ({scratch.heads}) must divide hidden_size ({scratch.hidden_size}), "
            f"and key_value_heads ({scratch.key_value_heads}) must divide heads"
        )
    elif scratch.hidden_size // scratch.heads % 2:
        yield (
            f"base_model.scratch: hidden_size ({scratch.hidden_size}) over heads ({scratch.heads}) must be even, for "
            "rotary position embeddings"
        )
