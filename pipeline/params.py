"""What params.yaml may say: one dataclass a section, and the checks that types alone cannot express."""

import math
import operator
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Annotated, get_args, get_type_hints

from omegaconf import MISSING

from pipeline import typed_yaml
from pipeline.errors import UserError

PARAMS_FILE = Path("params.yaml")
MILLION = 10**6  # more than any run counts; texts a pass * passes a step * steps still is a length that Python allows
FALLING = 4  # over the last fourth of its steps pretraining's learning rate falls (training.pretrain.DECAY)
METHODS = (
    "quiet_star",
    "no_policy",
    "shuffled_reward",
    "trained_swapped",
    "distilled",
    "rlp",
    "value",
    "pause",
    "pause_same_compute",
    "no_thought",
    "untrained",
    "before",
)
COMPARING = ("quiet_star", "shuffled_reward", "distilled")  # thoughts at one position, by `train.advantage`
# whether a value is within a bound, by the words that tell the user of it
TESTS = {"at least": operator.ge, "above": operator.gt, "at most": operator.le, "below": operator.lt}
TESTS |= {"one of": lambda a, b: a in b}
# types with bounds; a size counts what is gone through or held in memory, an amount may be streamed
Size = Annotated[int, ("at least", 1), ("at most", MILLION)]
SizeOrZero = Annotated[int, ("at least", 0), ("at most", MILLION)]
Amount = Annotated[int, ("at least", 1), ("at most", MILLION**2)]
Seed = Annotated[int, ("at least", 0), ("at most", 2**32 - 1)]  # that numpy's generator takes
Positive = Annotated[float, ("above", 0)]
NotNegative = Annotated[float, ("at least", 0)]
Share = Annotated[float, ("at least", 0), ("at most", 1)]
Device = Annotated[str, ("one of", ("auto", "cpu", "cuda"))]
Precision = Annotated[str, ("one of", ("float32", "bfloat16"))]
Method = Annotated[str, ("one of", METHODS)]
Solution = Annotated[str, ("one of", ("equations", "final"))]
Tracker = Annotated[str, ("one of", ("tensorboard", "trackio", "wandb", "mlflow"))]


@dataclass
class HubSplit:
    """Rows of a data set: a hub name or a local folder in the hub's layout, which of them, and how many."""

    path: str = MISSING
    name: str | None = None
    split: str = MISSING
    revision: str | None = None
    columns: str | None = None
    solution: Solution | None = None
    rows: Amount | None = None
    part: str | None = None

    @property
    def in_part(self) -> tuple[str, int, int] | None:
        """The column, the part and the number of parts; None where all rows are taken, or ``part`` is malformed."""
        found = re.fullmatch(r"(\w+):(\d{1,6})/(\d{1,6})", self.part or "")
        return found and (found[1], int(found[2]), int(found[3]))


@dataclass
class Hub:
    pretrain: HubSplit = field(default_factory=HubSplit)
    train: HubSplit = field(default_factory=HubSplit)
    heldout: HubSplit = field(default_factory=HubSplit)


@dataclass
class Moves:
    fewest: Size = MISSING
    most: Size = MISSING


@dataclass
class Kinds:
    """How often the micro-world's texts are of each kind, in proportion."""

    rings: NotNegative = MISSING
    animals: NotNegative = MISSING
    lookups: NotNegative = MISSING
    facts: NotNegative = MISSING
    stories: NotNegative = MISSING


@dataclass
class MicroWorld:
    pretrain_documents: Amount = MISSING
    train_documents: Amount = MISSING
    heldout_documents: Amount = MISSING
    probe_documents: Amount = MISSING
    questions: Size = MISSING
    question_seed: Seed = MISSING
    kinds: Kinds = field(default_factory=Kinds)
    moves: Moves = field(default_factory=Moves)
    worked_share: Share = MISSING
    aside_share: Share = MISSING
    train_aside_share: Share = MISSING


@dataclass
class Corpus:
    seed: Seed = MISSING
    source: Annotated[str, ("one of", ("microworld", "hub"))] = MISSING
    microworld: MicroWorld = field(default_factory=MicroWorld)
    hub: Hub = field(default_factory=Hub)


@dataclass
class Tasks:
    files: list[str] = MISSING
    root: str | None = None


@dataclass
class Tokenize:
    seed: Seed = MISSING
    # at least every byte, padding and the end of a document
    vocabulary: Annotated[int, ("at least", 258), ("at most", MILLION)] = MISSING
    pretrain_span: Annotated[int, ("at least", 2), ("at most", MILLION)] = MISSING
    # at least a token that thinks, its next one, and one after it
    span: Annotated[int, ("at least", 3), ("at most", MILLION)] = MISSING
    packed: bool = MISSING


@dataclass
class Pretraining:
    steps: SizeOrZero = MISSING
    batch_size: Size = MISSING
    learning_rate: Positive = MISSING
    warmup_steps: SizeOrZero = MISSING
    weight_decay: NotNegative = MISSING
    precision: Precision = MISSING


@dataclass
class Scratch(Pretraining):
    architecture: Annotated[str, ("one of", ("llama", "mistral", "qwen2", "qwen3", "gemma"))] = MISSING
    hidden_size: Size = MISSING
    layers: Annotated[int, ("at least", 1), ("at most", 1000)] = MISSING
    heads: Size = MISSING
    key_value_heads: Size = MISSING
    ffn_size: Size = MISSING
    init_std: Annotated[float, ("above", 0), ("at most", 1)] = MISSING
    tied_embeddings: bool = MISSING


@dataclass
class BaseModel:
    seed: Seed = MISSING
    source: Annotated[str, ("one of", ("scratch", "hub"))] = MISSING
    path: str | None = None
    revision: str | None = None
    scratch: Scratch = field(default_factory=Scratch)
    further: Pretraining = field(default_factory=Pretraining)

    @property
    def model(self) -> str:
        """The model of ``path``, a hub name or a folder, with ~ expanded, which no shell does in an option."""
        return str(Path(self.path).expanduser()) if self.path.startswith("~") else self.path

    @property
    def pretraining(self) -> Pretraining:
        """What is done in this project, to new weights or to a hub model's."""
        return self.scratch if self.source == "scratch" else self.further

    @property
    def pretrains(self) -> bool:
        return bool(self.pretraining.steps)


@dataclass
class Arms:
    methods: list[Method] = MISSING
    seeds: list[Seed] = MISSING

    @property
    def run(self) -> str:
        """The folder METHOD-SEED of the run that the report is about."""
        return f"{self.methods[0]}-{self.seeds[0]}"


@dataclass
class Lora:
    rank: Size = MISSING
    alpha: Positive = MISSING
    modules: list[str] | None = None


@dataclass
class Thinking:
    where: Annotated[str, ("one of", ("every", "random", "entropy", "gate", "one", "marker"))] = MISSING
    share: Annotated[float, ("above", 0), ("at most", 1)] = MISSING
    marker: str = MISSING


@dataclass
class Distill:
    form: Annotated[str, ("one of", ("kl", "reinforce"))] = MISSING
    weight: float = MISSING


@dataclass
class Stage:
    thought_tokens: Size = MISSING
    lookahead: Size = MISSING
    learning_rate: Positive = MISSING
    steps: Size = MISSING


@dataclass
class Rlp:
    clip: Positive = MISSING
    epochs: Size = MISSING


@dataclass
class Train:
    launcher: str = MISSING
    thought_tokens: Size = MISSING
    lookahead: Size = MISSING
    rationales: Size = MISSING
    thoughts_end: bool = MISSING
    token_cost: NotNegative = MISSING
    thought_temperature: Positive = MISSING
    thinking: Thinking = field(default_factory=Thinking)
    gate: bool = MISSING
    gate_share: Annotated[float, ("above", 0), ("at most", 1)] = MISSING
    meta_token_text: str = MISSING
    meta_token_scale: Positive = MISSING
    policy_weight: NotNegative = MISSING
    advantage: Annotated[str, ("one of", ("positive", "signed"))] = MISSING
    policy_temperature: Positive = MISSING
    distill: Distill = field(default_factory=Distill)
    rlp: Rlp = field(default_factory=Rlp)
    ema: Annotated[float, ("above", 0), ("below", 1)] | None = None
    steps: Size = MISSING
    stages: list[Stage] = MISSING
    batch_size: Size = MISSING
    accumulation: Size = MISSING
    learning_rate: Positive = MISSING
    mixing_head_learning_rate: Positive = MISSING
    warmup_steps: SizeOrZero = MISSING
    weight_decay: NotNegative = MISSING
    gradient_clip: Positive = MISSING
    clip: Annotated[str, ("one of", ("together", "apart"))] = MISSING
    log_steps: Size = MISSING
    evaluation_steps: Size = MISSING
    evaluation_texts: Size = MISSING
    device: Device = MISSING
    attention: Annotated[str, ("one of", ("auto", "reference", "blocked", "flex"))] = MISSING
    positions: Size | None = None
    checkpointing: bool = MISSING
    precision: Precision = MISSING
    adapt: Annotated[str, ("one of", ("whole", "lora", "frozen"))] = MISSING
    lora: Lora = field(default_factory=Lora)
    saved: Annotated[str, ("one of", ("whole", "learned"))] = MISSING
    optimizer: Annotated[str, ("one of", ("adamw", "adamw_8bit"))] = MISSING
    trackers: list[Tracker] = MISSING

    @property
    def every_stage(self) -> list[Stage]:
        """The stages in turn: one with the settings above, where ``stages`` names none."""
        return self.stages or [Stage(self.thought_tokens, self.lookahead, self.learning_rate, self.steps)]


@dataclass
class Measured:
    """What every stage that asks or reads with a trained model needs."""

    launcher: str = MISSING
    seed: Seed = MISSING
    batch_size: Size = MISSING
    thought_temperature: NotNegative = MISSING
    device: Device = MISSING
    precision: Precision = MISSING


@dataclass
class Evaluate(Measured):
    questions: Size | None = None


@dataclass
class ChainOfThought(Evaluate):
    samples: Size = MISSING
    temperature: Positive = MISSING
    new_tokens: Size = MISSING
    answer_tokens: Size = MISSING


@dataclass
class Perplexity(Measured):
    texts: Size = MISSING


@dataclass
class Report:
    passages: Size = MISSING


@dataclass
class Plan:
    devices: Size = MISSING
    device_memory: Positive = MISSING
    flops: Positive = MISSING
    disk: NotNegative | None = None
    document_bytes: Size = MISSING
    documents: Annotated[int, ("at least", 0), ("at most", MILLION**2)] = MISSING
    questions: SizeOrZero = MISSING


@dataclass
class Params:
    corpus: Corpus = field(default_factory=Corpus)
    tasks: Tasks = field(default_factory=Tasks)
    tokenize: Tokenize = field(default_factory=Tokenize)
    base_model: BaseModel = field(default_factory=BaseModel)
    arms: Arms = field(default_factory=Arms)
    train: Train = field(default_factory=Train)
    evaluate: Evaluate = field(default_factory=Evaluate)
    chain_of_thought: ChainOfThought = field(default_factory=ChainOfThought)
    perplexity: Perplexity = field(default_factory=Perplexity)
    report: Report = field(default_factory=Report)
    plan: Plan = field(default_factory=Plan)


def load(path: Path = PARAMS_FILE, changes: Mapping[str, object] | None = None) -> Params:
    """Read and check the parameters in ``path``, with ``changes`` by dotted name put on top.

    Raises UserError, in one line, if there is no such file or no run can have these parameters.
    """
    params = typed_yaml.load(path, Params, changes)
    for problem in chain(_out_of_bounds(params, ""), _impossible(params)):
        raise UserError(f"{path}: {problem}")
    return params


def flat(values: Mapping, prefix: str = "") -> dict[str, object]:
    """The values of nested sections by dotted name."""
    found: dict[str, object] = {}
    for key, value in values.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _out_of_bounds(section: object, prefix: str) -> Iterator[str]:
    for key, kind in get_type_hints(type(section), include_extras=True).items():
        name, value = f"{prefix}{key}", getattr(section, key)
        if is_dataclass(value):
            yield from _out_of_bounds(value, f"{name}.")
            continue
        for i, one in enumerate(value) if isinstance(value, list) else ():
            yield from _out_of_bounds(one, f"{name}[{i}].") if is_dataclass(one) else ()
        bounds = [bound for some in (kind, *get_args(kind)) for bound in getattr(some, "__metadata__", ())]
        allowed = " and ".join(f"{how} {', '.join(b) if how == 'one of' else b}" for how, b in bounds)
        for one in value if isinstance(value, list) else [] if value is None else [value]:
            finite = not isinstance(one, float) or math.isfinite(one)
            if not (finite and all(TESTS[how](one, bound) for how, bound in bounds)):
                yield f"{name} is {value}, but must be {'' if finite else 'a finite number '}{allowed}"


def _impossible(params: Params) -> Iterator[str]:
    """Problems of values that are within their bounds."""
    yield from _impossible_data(params)
    yield from _impossible_base(params.base_model)
    for name, values in vars(params.arms).items():
        if not values or len(set(values)) < len(values):
            yield f"arms.{name} is {values}, but must name at least one and none twice"
    yield from _impossible_training(params.train, params.tokenize.span)
    yield from _impossible_arms(params.train, {*params.arms.methods})


def _impossible_data(params: Params) -> Iterator[str]:
    moves = params.corpus.microworld.moves
    if moves.fewest > moves.most:
        yield f"corpus.microworld.moves.fewest is {moves.fewest}, but must be at most moves.most, {moves.most}"
    if not any(asdict(params.corpus.microworld.kinds).values()):
        yield "corpus.microworld.kinds are all 0: at least one must be above 0"
    if not params.tasks.files:
        yield "tasks.files is empty: name at least one task file"
    hub = vars(params.corpus.hub)
    paths = {f"corpus.hub.{split}.path": source.path for split, source in hub.items()}
    paths |= {"tasks.root": params.tasks.root, "base_model.path": params.base_model.path}
    for name in (name for name, path in paths.items() if typed_yaml.no_home(path)):
        yield f"{name} is {paths[name]}, but nobody here has the home folder that it begins with: write it out"
    for split, source in hub.items():
        if not source.path:
            yield f"corpus.hub.{split}.path is empty: name a hub data set or a local folder"
        if source.part is not None and not (source.in_part and 1 <= source.in_part[1] <= source.in_part[2]):
            yield f"corpus.hub.{split}.part is {source.part}, but must be COLUMN:I/N, such as module:1/2, or null"
        if source.columns and source.columns.count("+") > 1:
            yield f"corpus.hub.{split}.columns is {source.columns}, but must name one column, or two with a + between"
        if source.solution is not None and "+" not in (source.columns or ""):
            yield f"corpus.hub.{split}.solution is {source.solution}, but columns names no question+answer"


def _impossible_base(base: BaseModel) -> Iterator[str]:
    scratch = base.scratch
    if base.source == "hub" and not base.path:
        yield "base_model.path is missing: with base_model.source hub it names a hub model or a local folder"
    if not scratch.steps:
        yield "base_model.scratch.steps is 0, but must be at least 1: new weights know nothing"
    for name, stage in (("scratch", scratch), ("further", base.further)):
        constant = stage.steps - stage.steps // FALLING
        if stage.steps and stage.warmup_steps >= constant:
            told = f"below {constant}, where the rate begins to fall"
            yield f"base_model.{name}.warmup_steps is {stage.warmup_steps}, but must be {told}"
    if scratch.hidden_size % scratch.heads or scratch.heads % scratch.key_value_heads:
        yield "base_model.scratch: heads must divide hidden_size, and key_value_heads must divide heads"
    elif scratch.hidden_size // scratch.heads % 2:
        yield "base_model.scratch: hidden_size divided by heads must be even, for rotary position embeddings"


def _impossible_training(train: Train, span: int) -> Iterator[str]:
    """Problems of any method; ``span``: tokens of a text."""
    if not train.thinking.marker:
        yield "train.thinking.marker is empty: it is the text after which a position thinks"
    if train.thinking.where == "gate" and not train.gate:
        yield "train.thinking.where is gate, but train.gate is false: there is no gate to choose, make it true"
    if not train.meta_token_text:
        yield "train.meta_token_text is empty: the meta-tokens start as the embedding of this text"
    if train.adapt == "whole" and train.saved == "learned":
        yield "train.saved is learned, but with train.adapt whole that is the whole model: set one of them"
    if train.lora.modules == []:
        yield "train.lora.modules is empty: name linear layers, or null for all of them"
    if train.token_cost and not train.thoughts_end:
        yield "train.token_cost is for thoughts that end themselves: make train.thoughts_end true, or the cost 0"
    if train.clip == "apart" and train.positions is not None:
        yield "train.clip is apart, which needs all positions at once: make train.positions null"
    stages = {f"train.stages[{i}].": stage for i, stage in enumerate(train.stages)} or {"train.": train}
    for prefix, stage in stages.items():
        if stage.lookahead > (most := span - 2):
            yield f"{prefix}lookahead is {stage.lookahead}, but must be at most {most}, two less than tokenize.span"
    ends = accumulate(stage.steps for stage in train.every_stage)
    if apart := [end for end in ends if end % train.log_steps]:
        what = "a stage" if train.stages else "training"
        yield f"train.log_steps is {train.log_steps}, but {what} ends at step {apart[0]}: make it a divisor, such as 1"


def _impossible_arms(train: Train, methods: set[str]) -> Iterator[str]:
    """Settings that one of the ``methods`` cannot be trained with."""
    if train.adapt == "frozen" and "no_thought" in methods:
        yield "arms.methods has no_thought, which has nothing to learn with train.adapt frozen: drop it, or take lora"
    if train.adapt == "frozen" and "distilled" in methods:
        yield "arms.methods has distilled, whose student has nothing to learn with train.adapt frozen: take lora"
    if train.rationales < 2 and train.advantage == "signed" and {*COMPARING} & methods:
        yield "train.advantage is signed, which compares thoughts at one position: make train.rationales at least 2"
    if train.rationales < 2 and "rlp" in methods:
        yield "arms.methods has rlp, which compares thoughts at one position: make train.rationales at least 2"
    if "trained_swapped" in methods and train.batch_size < 2:
        yield "arms.methods has trained_swapped, which reads another text's thoughts: make train.batch_size at least 2"
    if train.stages and train.rlp.epochs > 1 and "rlp" in methods:
        yield "train.rlp.epochs is above 1, and a stage may end between a batch's epochs: make it 1, or train.stages []"
    if train.stages and (pauses := {"pause", "pause_same_compute"} & methods):
        yield f"arms.methods has {min(pauses)}, whose pauses have one length: drop it, or make train.stages []"
    if "pause_same_compute" in methods and train.thinking.where in ("one", "marker"):
        yield "arms.methods has pause_same_compute, but how much thinks is not known before: train.thinking.where every"
