"""What params.yaml may say: one dataclass a section, and the checks that types alone cannot express."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from pipeline.errors import UserError

PARAMS_FILE = Path("params.yaml")


@dataclass
class HubSplit:
    """Rows of a data set: a hub name or a local folder in the hub's layout, and how many of them."""

    path: str = MISSING
    name: str | None = None
    split: str = MISSING
    revision: str | None = None
    columns: str | None = None
    rows: int | None = None


@dataclass
class Hub:
    pretrain: HubSplit = field(default_factory=HubSplit)
    train: HubSplit = field(default_factory=HubSplit)
    heldout: HubSplit = field(default_factory=HubSplit)
    gsm8k: HubSplit = field(default_factory=HubSplit)
    commonsense_qa: HubSplit = field(default_factory=HubSplit)


@dataclass
class MicroWorld:
    pretrain_documents: int = MISSING
    train_documents: int = MISSING
    heldout_documents: int = MISSING
    probe_documents: int = MISSING
    questions: int = MISSING
    steps: int = MISSING
    aside_share: float = MISSING


@dataclass
class Corpus:
    seed: int = MISSING
    source: str = MISSING
    microworld: MicroWorld = field(default_factory=MicroWorld)
    hub: Hub = field(default_factory=Hub)


@dataclass
class Tokenize:
    seed: int = MISSING
    vocabulary: int = MISSING
    pretrain_span: int = MISSING
    span: int = MISSING
    packed: bool = MISSING


@dataclass
class Scratch:
    architecture: str = MISSING
    hidden_size: int = MISSING
    layers: int = MISSING
    heads: int = MISSING
    key_value_heads: int = MISSING
    ffn_size: int = MISSING
    init_std: float = MISSING
    tied_embeddings: bool = MISSING
    steps: int = MISSING
    batch_size: int = MISSING
    learning_rate: float = MISSING
    warmup_steps: int = MISSING
    weight_decay: float = MISSING


@dataclass
class BaseModel:
    seed: int = MISSING
    source: str = MISSING
    path: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    scratch: Scratch = field(default_factory=Scratch)


@dataclass
class Train:
    seed: int = MISSING
    thought_tokens: int = MISSING
    lookahead: int = MISSING
    rationales: int = MISSING
    meta_token_text: str = MISSING
    meta_token_scale: float = MISSING
    policy_weight: float = MISSING
    policy_temperature: float = MISSING
    steps: int = MISSING
    batch_size: int = MISSING
    accumulation: int = MISSING
    learning_rate: float = MISSING
    mixing_head_learning_rate: float = MISSING
    warmup_steps: int = MISSING
    weight_decay: float = MISSING
    gradient_clip: float = MISSING
    log_steps: int = MISSING
    evaluation_steps: int = MISSING
    evaluation_texts: int = MISSING
    device: str = MISSING


@dataclass
class Evaluate:
    seed: int = MISSING
    questions: int | None = None
    batch_size: int = MISSING
    thought_temperature: float = MISSING
    bootstrap_samples: int = MISSING
    device: str = MISSING


@dataclass
class Perplexity:
    seed: int = MISSING
    texts: int = MISSING
    batch_size: int = MISSING
    thought_temperature: float = MISSING
    bootstrap_samples: int = MISSING
    device: str = MISSING


@dataclass
class Report:
    passages: int = MISSING


@dataclass
class Params:
    corpus: Corpus = field(default_factory=Corpus)
    tokenize: Tokenize = field(default_factory=Tokenize)
    base_model: BaseModel = field(default_factory=BaseModel)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    perplexity: Perplexity = field(default_factory=Perplexity)
    report: Report = field(default_factory=Report)

LONGEST_TEXT = 4096  # tokens that a model from scratch has position ids for
SMALLEST_VOCABULARY = 257  # every byte, and padding
CHOICES = {
    "corpus.source": ("microworld", "hub"),
    "base_model.source": ("scratch", "hub"),
    "base_model.scratch.architecture": ("llama", "mistral", "qwen2", "qwen3", "gemma"),
    "train.device": ("auto", "cpu", "cuda"),
    "evaluate.device": ("auto", "cpu", "cuda"),
    "perplexity.device": ("auto", "cpu", "cuda"),
}
AT_LEAST_ONE = """
    corpus.microworld.pretrain_documents corpus.microworld.train_documents corpus.microworld.heldout_documents
    corpus.microworld.questions corpus.microworld.steps corpus.microworld.probe_documents
    corpus.hub.pretrain.rows corpus.hub.train.rows corpus.hub.heldout.rows corpus.hub.gsm8k.rows
    corpus.hub.commonsense_qa.rows
    tokenize.pretrain_span tokenize.span
    base_model.scratch.hidden_size base_model.scratch.layers base_model.scratch.heads
    base_model.scratch.key_value_heads base_model.scratch.ffn_size base_model.scratch.steps
    base_model.scratch.batch_size
    train.thought_tokens train.lookahead train.rationales train.steps train.batch_size train.accumulation
    train.log_steps train.evaluation_steps train.evaluation_texts
    evaluate.questions evaluate.batch_size evaluate.bootstrap_samples
    perplexity.texts perplexity.batch_size perplexity.bootstrap_samples report.passages
""".split()
ABOVE_ZERO = """
    base_model.scratch.learning_rate base_model.scratch.init_std train.meta_token_scale train.policy_temperature
    train.learning_rate train.mixing_head_learning_rate train.gradient_clip
""".split()
NOT_BELOW_ZERO = """
    corpus.seed tokenize.seed base_model.seed train.seed evaluate.seed perplexity.seed
    base_model.scratch.warmup_steps base_model.scratch.weight_decay train.warmup_steps train.weight_decay
    train.policy_weight evaluate.thought_temperature perplexity.thought_temperature
""".split()


def load(path: Path = PARAMS_FILE, changes: Mapping[str, object] | None = None) -> Params:
    """The parameters in ``path``, with ``changes`` by dotted name, checked.

    Raises UserError, in one line, for what cannot be run.
    """
    try:
        config = OmegaConf.merge(OmegaConf.structured(Params), OmegaConf.load(path))
        for name, value in (changes or {}).items():
            OmegaConf.update(config, name, value, force_add=False)
        params = OmegaConf.to_object(config)
    except FileNotFoundError as error:
        raise UserError(f"{path} is missing: run from the project's root") from error
    except OmegaConfBaseException as error:
        raise UserError(f"{path}: {_first_line(error)}") from error
    except (YAMLError, OSError, ValueError) as error:
        raise UserError(f"{path} is not readable YAML: {error}") from error
    for problem in _problems(config):
        raise UserError(f"{path}: {problem}")
    return params


def _first_line(error: OmegaConfBaseException) -> str:
    key = f"{error.full_key}: " if error.full_key else ""
    return key + str(error).splitlines()[0]


def _problems(config: DictConfig) -> Iterator[str]:
    """What no run can have, one line each."""
    for names, least, inclusive in ((AT_LEAST_ONE, 1, True), (ABOVE_ZERO, 0, False), (NOT_BELOW_ZERO, 0, True)):
        for name in names:
            value = OmegaConf.select(config, name)
            if value is not None and not (math.isfinite(value) and (value >= least if inclusive else value > least)):
                yield f"{name} is {value}, but must be {'at least' if inclusive else 'above'} {least}"
    for name, known in CHOICES.items():
        if OmegaConf.select(config, name) not in known:
            yield f"{name} is {OmegaConf.select(config, name)!r}, but must be one of {', '.join(known)}"
    yield from _impossible_sizes(config)
    if config.base_model.source == "hub" and not config.base_model.path:
        yield "base_model.path is missing: with base_model.source hub it names a hub model or a local folder"
    if not config.train.meta_token_text:
        yield "train.meta_token_text is empty: the meta-tokens start as the embedding of this text"


def _impossible_sizes(config: DictConfig) -> Iterator[str]:
    train, tokenize, scratch = config.train, config.tokenize, config.base_model.scratch
    if train.lookahead > tokenize.span - 2:
        yield (
            f"train.lookahead is {train.lookahead}, but in a span of {tokenize.span} tokens (tokenize.span) a thought has "
            f"at most {tokenize.span - 2} tokens after it"
        )
    room = LONGEST_TEXT - tokenize.span - train.thought_tokens - 1 - train.lookahead
    if config.base_model.source == "scratch" and room < 0:
        yield (
            f"tokenize.span ({tokenize.span}), train.thought_tokens ({train.thought_tokens}) and train.lookahead "
            f"({train.lookahead}) leave no room for a thought: a model from scratch has {LONGEST_TEXT} positions"
        )
    if tokenize.pretrain_span < 2:
        yield "tokenize.pretrain_span is 1, but predicting a token needs at least 2"
    if scratch.hidden_size % scratch.heads or scratch.heads % scratch.key_value_heads:
        yield (
            f"base_model.scratch: heads ({scratch.heads}) must divide hidden_size ({scratch.hidden_size}), "
            f"and key_value_heads ({scratch.key_value_heads}) must divide heads"
        )
    if not 0 <= config.corpus.microworld.aside_share <= 1:
        yield f"corpus.microworld.aside_share is {config.corpus.microworld.aside_share}, but must be within 0 and 1"
    if tokenize.vocabulary < SMALLEST_VOCABULARY:
        yield f"tokenize.vocabulary is {tokenize.vocabulary}, but bytes alone need {SMALLEST_VOCABULARY}"
