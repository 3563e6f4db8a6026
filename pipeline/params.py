"""What params.yaml may say: one dataclass a section, and the checks that types alone cannot express."""

import math
import operator
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from pipeline import typed_yaml
from pipeline.errors import UserError

PARAMS_FILE = Path("params.yaml")
LONGEST_TEXT = 4096  # tokens that a model from scratch has position ids for
LARGEST_SEED = 2**32 - 1  # that numpy's generator takes
MILLION = 10**6  # more than any run counts; texts a pass * passes a step * steps still is a length that Python allows
METHODS = ("quiet_star", "pause", "no_thought")
# whether a value is within a bound, by the words that tell the user of it
TESTS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "one of": lambda a, b: a in b}


def a_number(default: object = MISSING, **bounds: float) -> Any:
    """A field whose number must be ``at_least``, ``above`` and ``at_most`` these bounds."""
    return field(default=default, metadata={name.replace("_", " "): bound for name, bound in bounds.items()})


def a_seed() -> Any:
    return a_number(at_least=0, at_most=LARGEST_SEED)


def a_size(at_least: int = 1, at_most: int = MILLION, default: object = MISSING) -> Any:
    """A field that counts what is gone through or held in memory."""
    return a_number(default, at_least=at_least, at_most=at_most)


def one_of(*words: str) -> Any:
    return field(default=MISSING, metadata={"one of": words})


@dataclass
class HubSplit:
    """Rows of a data set: a hub name or a local folder in the hub's layout, and how many of them."""

    path: str = MISSING
    name: str | None = None
    split: str = MISSING
    revision: str | None = None
    columns: str | None = None
    rows: int | None = a_size(at_most=MILLION**2, default=None)


@dataclass
class Hub:
    pretrain: HubSplit = field(default_factory=HubSplit)
    train: HubSplit = field(default_factory=HubSplit)
    heldout: HubSplit = field(default_factory=HubSplit)


@dataclass
class MicroWorld:
    pretrain_documents: int = a_size(at_most=MILLION**2)
    train_documents: int = a_size(at_most=MILLION**2)
    heldout_documents: int = a_size(at_most=MILLION**2)
    probe_documents: int = a_size(at_most=MILLION**2)
    questions: int = a_size()
    steps: int = a_size()
    aside_share: float = a_number(at_least=0, at_most=1)


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
    layers: int = a_size(at_most=1000)
    heads: int = a_size()
    key_value_heads: int = a_size()
    ffn_size: int = a_size()
    init_std: float = a_number(above=0, at_most=1)
    tied_embeddings: bool = MISSING
    steps: int = a_size()
    batch_size: int = a_size()
    learning_rate: float = a_number(above=0)
    warmup_steps: int = a_size(0)
    weight_decay: float = a_number(at_least=0)


@dataclass
class BaseModel:
    seed: int = a_seed()
    source: str = one_of("scratch", "hub")
    path: str | None = None
    revision: str | None = None
    scratch: Scratch = field(default_factory=Scratch)


@dataclass
class Lora:
    rank: int = a_size()
    alpha: float = a_number(above=0)
    modules: list[str] | None = None


@dataclass
class Train:
    seed: int = a_seed()
    launcher: str = MISSING
    method: str = one_of(*METHODS)
    thought_tokens: int = a_size()
    lookahead: int = a_size()
    rationales: int = a_size()
    meta_token_text: str = MISSING
    meta_token_scale: float = a_number(above=0)
    policy_weight: float = a_number(at_least=0)
    policy_temperature: float = a_number(above=0)
    steps: int = a_size()
    batch_size: int = a_size()
    accumulation: int = a_size()
    learning_rate: float = a_number(above=0)
    mixing_head_learning_rate: float = a_number(above=0)
    warmup_steps: int = a_size(0)
    weight_decay: float = a_number(at_least=0)
    gradient_clip: float = a_number(above=0)
    log_steps: int = a_size()
    evaluation_steps: int = a_size()
    evaluation_texts: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")
    attention: str = one_of("auto", "reference", "blocked", "flex")
    positions: int | None = a_size(default=None)
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
    questions: int | None = a_size(default=None)
    batch_size: int = a_size()
    thought_temperature: float = a_number(at_least=0)
    bootstrap_samples: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class Compare:
    seed: int = a_seed()
    bootstrap_samples: int = a_size()


@dataclass
class ChainOfThought:
    seed: int = a_seed()
    questions: int | None = a_size(default=None)
    samples: int = a_size()
    temperature: float = a_number(above=0)
    thought_temperature: float = a_number(at_least=0)
    new_tokens: int = a_size()
    answer_tokens: int = a_size()
    batch_size: int = a_size()
    bootstrap_samples: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class Perplexity:
    seed: int = a_seed()
    texts: int = a_size()
    batch_size: int = a_size()
    thought_temperature: float = a_number(at_least=0)
    bootstrap_samples: int = a_size()
    device: str = one_of("auto", "cpu", "cuda")


@dataclass
class Report:
    passages: int = a_size()


@dataclass
class Plan:
    devices: int = a_size()
    device_memory: float = a_number(above=0)
    flops: float = a_number(above=0)
    disk: float | None = a_number(None, at_least=0)
    document_bytes: int = a_size()
    documents: int = a_size(0, MILLION**2)
    questions: int = a_size(0)


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
    """Read and check the parameters in ``path``, with ``changes`` by dotted name put on top.

    Raises UserError, in one line, if there is no such file or no run can have these parameters.
    """
    try:
        params = typed_yaml.load(path, Params, changes)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run from the project's root") from error
    for problem in chain(_out_of_bounds(params, ""), _impossible_names(params), _impossible_sizes(params)):
        raise UserError(f"{path}: {problem}")
    return params


def _out_of_bounds(section: object, prefix: str) -> Iterator[str]:
    for entry in fields(section):
        name, value, bounds = f"{prefix}{entry.name}", getattr(section, entry.name), entry.metadata
        if is_dataclass(value):
            yield from _out_of_bounds(value, f"{name}.")
            continue
        finite = not isinstance(value, float) or math.isfinite(value)
        if value is not None and not (finite and all(TESTS[how](value, bound) for how, bound in bounds.items())):
            allowed = [f"{how} {', '.join(bound) if how == 'one of' else bound}" for how, bound in bounds.items()]
            yield f"{name} is {value}, but must be {'' if finite else 'a finite number '}{' and '.join(allowed)}"


def _impossible_names(params: Params) -> Iterator[str]:
    """Problems of names, lists and choices."""
    train, baseline = params.train, params.baseline
    if not params.tasks.files:
        yield "tasks.files is empty: name at least one task file"
    if params.base_model.source == "hub" and not params.base_model.path:
        yield "base_model.path is missing: with base_model.source hub it names a hub model or a local folder"
    for split in ("pretrain", "train", "heldout"):
        source = getattr(params.corpus.hub, split)
        if not source.path:
            yield f"corpus.hub.{split}.path is empty: name a hub data set or a local folder"
        if source.columns and source.columns.count("+") > 1:
            yield f"corpus.hub.{split}.columns is {source.columns}, but must name one column, or two with a + between"
    for name, values in (("methods", baseline.methods), ("seeds", baseline.seeds)):
        if len(set(values)) < len(values):
            yield f"baseline.{name} is {values}, but must name nothing twice"
    for method in baseline.methods:
        if method not in METHODS:
            yield f"baseline.methods has {method}, but a method is one of {', '.join(METHODS)}"
    if not all(0 <= seed <= LARGEST_SEED for seed in baseline.seeds):
        yield f"baseline.seeds is {baseline.seeds}, but a seed must be at least 0 and at most {LARGEST_SEED}"
    if not train.meta_token_text:
        yield "train.meta_token_text is empty: the meta-tokens start as the embedding of this text"
    if train.adapt == "whole" and train.saved == "learned":
        yield "train.saved is learned, but with train.adapt whole that is the whole model: set one of them"
    if train.lora.modules == []:
        yield "train.lora.modules is empty: name linear layers, or null for all of them"
    for name, methods in (("train.method", [train.method]), ("baseline.methods", baseline.methods)):
        if train.adapt == "frozen" and "no_thought" in methods:
            yield f"{name} has no_thought, which has nothing to learn when train.adapt is frozen: drop it, or take lora"


def _impossible_sizes(params: Params) -> Iterator[str]:
    """Problems of sizes that do not go together."""
    train, span, scratch = params.train, params.tokenize.span, params.base_model.scratch
    if train.lookahead > span - 2:
        yield f"train.lookahead is {train.lookahead}, but must be at most {span - 2}, two less than tokenize.span"
    positions = span + train.thought_tokens + 1 + train.lookahead
    if params.base_model.source == "scratch" and positions > LONGEST_TEXT:
        names = "tokenize.span, train.thought_tokens and train.lookahead"
        yield f"{names} need {positions} positions, but a model from scratch has {LONGEST_TEXT}"
    if scratch.hidden_size % scratch.heads or scratch.heads % scratch.key_value_heads:
        yield "base_model.scratch: heads must divide hidden_size, and key_value_heads must divide heads"
    elif scratch.hidden_size // scratch.heads % 2:
        yield "base_model.scratch: hidden_size divided by heads must be even, for rotary position embeddings"
