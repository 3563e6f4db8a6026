"""What params.yaml may say, and how it is refused."""

import math
import re
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from dvc.utils.serialize import loads_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline import params, typed_yaml
from pipeline.errors import UserError
from pipeline.report import method as report_method
from pipeline.thought import methods

SHIPPED = Path(__file__).parents[1] / "params.yaml"
TEXT = SHIPPED.read_bytes()


def refused(changes: dict[str, object]) -> str:
    with pytest.raises(UserError) as error:
        params.load(SHIPPED, changes)
    assert str(error.value).startswith(f"{SHIPPED}: ")
    return str(error.value).removeprefix(f"{SHIPPED}: ")


INTEGER, SIZE = "could not be converted to Integer", "but must be at least 1 and at most 1000000"
STAGE = {"thought_tokens": 9, "lookahead": 4, "learning_rate": 1e-4, "steps": 50}
HEADS = "base_model.scratch: heads must divide hidden_size, and key_value_heads must divide heads"


@pytest.mark.parametrize(
    "name, value, message",
    [
        # another type
        ("train", "fast", "train is fast, but must be a section"),
        ("train.steps", "ten", f"train.steps: Value 'ten' of type 'str' {INTEGER}"),
        ("train.steps", True, f"train.steps: Value 'True' of type 'bool' {INTEGER}"),
        ("train.steps", None, "train.steps: Incompatible value 'None' for field of type 'int'"),
        ("tasks.files", "a.yaml", "tasks.files is a.yaml, but must be a list of single values"),
        ("arms.methods", [["pause"]], "arms.methods is [['pause']], but must be a list of single values"),
        ("report.passages", "${train.steps}", "report.passages: While dereferencing interpolation"),
        ("train.stages", 3, "train.stages is 3, but must be a list of sections"),
        ("train.stages", [3], "train.stages[0] is 3, but must be a section"),
        ("train.stages", [STAGE | {"steps": "ten"}], f"train.stages[0].steps: Value 'ten' of type 'str' {INTEGER}"),
        # unknown and missing keys
        (
            "train.stages",
            [STAGE, STAGE | {"rationales": 2}],
            "train.stages[1].rationales: Key 'rationales' not in 'Stage'",
        ),
        ("train.stages", [{"steps": 3}], "train.stages[0].thought_tokens is missing"),
        ("train.stepz", 1, "there is no key train.stepz"),
        ("corpus.hub.train.extra", {"a": "${"}, "corpus.hub.train.extra"),
        ("train.lookahead", "???", "train.lookahead is missing"),
        # bounds
        ("train.steps", 0, f"train.steps is 0, {SIZE}"),
        ("tokenize.vocabulary", 257, "tokenize.vocabulary is 257, but must be at least 258 and at most 1000000"),
        ("train.learning_rate", math.nan, "train.learning_rate is nan, but must be a finite number above 0"),
        ("train.policy_weight", math.inf, "train.policy_weight is inf, but must be a finite number at least 0"),
        ("chain_of_thought.temperature", 0.0, "chain_of_thought.temperature is 0.0, but must be above 0"),
        ("train.stages", [STAGE, STAGE | {"steps": 0}], f"train.stages[1].steps is 0, {SIZE}"),
        ("train.stages", [STAGE | {"learning_rate": 0.0}], "train.stages[0].learning_rate is 0.0, but must be above 0"),
        ("train.distill.weight", math.inf, "train.distill.weight is inf, but must be a finite number"),
        # words
        ("train.distill.form", "released", "train.distill.form is released, but must be one of kl, reinforce"),
        ("train.meta_token_text", "", "train.meta_token_text is empty"),
        ("corpus.hub.train.columns", "a+b+c", "corpus.hub.train.columns is a+b+c, but must name one column, or two"),
        (
            "corpus.hub.pretrain.solution",
            "final",
            "corpus.hub.pretrain.solution is final, but columns names no question+answer",
        ),
        ("train.log_steps", 151, "train.log_steps is 151, but training ends at step 150: make it a divisor"),
        ("train.log_steps", 4, "train.log_steps is 4, but training ends at step 150: make it a divisor, such as 1"),
        ("train.ema", 1.0, "train.ema is 1.0, but must be above 0 and below 1"),
        ("base_model.further.steps", 20, "base_model.further.warmup_steps is 20, but must be below 15, where"),
        ("base_model.scratch.steps", 133, "base_model.scratch.warmup_steps is 100, but must be below 100, where"),
        ("tasks.root", "~no-such-user/hub", "tasks.root is ~no-such-user/hub, but nobody here has the home folder"),
        ("base_model.scratch.steps", 0, "base_model.scratch.steps is 0, but must be at least 1"),
        ("corpus.hub.train.part", "module:3/2", "corpus.hub.train.part is module:3/2, but must be COLUMN:I/N"),
        ("corpus.hub.train.part", "half", "corpus.hub.train.part is half, but must be COLUMN:I/N, such as module:1/2"),
        ("base_model.source", "hub", "base_model.path is missing"),
        ("tasks.files", [], "tasks.files is empty: name at least one task file"),
        ("train.lora.modules", [], "train.lora.modules is empty"),
        ("arms.methods", ["pause"] * 2, "arms.methods is ['pause', 'pause'], but must name at least one and none"),
        ("arms.seeds", [], "arms.seeds is [], but must name at least one"),
        # values that do not go together
        ("train.saved", "learned", "train.saved is learned, but with train.adapt whole"),
        ("train.advantage", "negative", "train.advantage is negative, but must be one of positive, signed"),
        ("train.lookahead", 47, "train.lookahead is 47, but must be at most 46, two less than tokenize.span"),
        ("train.clip", "never", "train.clip is never, but must be one of together, apart"),
        ("base_model.scratch.heads", 3, HEADS),
        ("base_model.scratch.key_value_heads", 3, HEADS),
        ("base_model.scratch.hidden_size", 12, "base_model.scratch: hidden_size divided by heads must be even"),
    ],
)
def test_a_value_that_no_run_can_have(name: str, value: object, message: str):
    assert refused({name: value}).startswith(message)


def parameters(section: type = params.Params, prefix: str = "") -> Iterator[tuple[str, tuple]]:
    """The name of every parameter, and its type with the types in it."""
    for name, kind in get_type_hints(section).items():
        if is_dataclass(kind):
            yield from parameters(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", (kind, *get_args(kind))


INTEGERS = [name for name, kinds in parameters() if int in kinds]


@pytest.mark.parametrize("name", [*INTEGERS, "corpus.microworld.aside_share", "base_model.scratch.init_std"])
def test_a_value_below_or_above_the_bounds(name: str):
    """Every integer has two bounds."""
    for number, bound in ((-1, " (at least|above) "), (10**13, " at most ")):
        message = refused({name: [number] if name == "arms.seeds" else number})
        assert message.startswith(f"{name} is ") and re.search(bound, message)


ALIASES = b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"


@pytest.mark.parametrize(
    "text, message",
    [
        (b"", " is empty"),
        (b"- train\n", " must be a list of keys and their values"),
        (b"- " * 5000, " is not readable YAML: line 1, column 41: more than 20 levels of nesting"),
        (b"train: caf\xe9", " is not readable YAML: "),
        (b"train: [1,", " is not readable YAML: line 2, column 1: "),
        (b"train: {seed: " + b"9" * 5000 + b"}", " is not readable YAML: Exceeds the limit"),
        (TEXT.replace(b"\ntrain:", b"\nreport: {passages: 1}\ntrain:"), "column 1: the key report is there twice"),
        (ALIASES, " is not readable YAML: line 1, column 4: aliases (*) are not allowed"),
        (b"train: &a {train: *a}", "found unconstructable recursive node"),
        (b"train: !!python/object/apply:os.system ['touch CODE_WAS_RUN']\n", "line 1, column 8: could not determine a"),
        (b"train: !!set {a, b}", ": train is {"),
        (b"? [train]\n: 1", " is not readable YAML: line 1, column 3: found unhashable key"),
        (b"1: 2", ": there is no key 1"),
    ],
)
def test_a_file_that_is_no_params(text: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_bytes(text)
    with pytest.raises(UserError) as error:
        params.load()
    assert str(error.value).startswith("params.yaml") and message in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["params.yaml"]


def test_no_file(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "params.yaml", tmp_path / "link"):
        with pytest.raises(UserError, match="is missing: run from the project's root"):
            params.load(path)
    with pytest.raises(UserError, match="not readable: Is a directory"):
        params.load(tmp_path)


def test_plain_words_are_read_as_dvc_reads_them(tmp_path: Path):
    """But for a number that begins with 0, which stays text: a revision may look so."""
    text = "[no, yes, 'true', 1:30, 1e-5, 1.0e+11, .5, 3., -3, +7, 0, true, null, .inf, 0123456]"
    (tmp_path / "words.yaml").write_text(text)
    *found, revision = typed_yaml.read(tmp_path / "words.yaml")
    expected = ["no", "yes", "true", "1:30", 1e-5, 1e11, 0.5, 3.0, -3, 7, 0, True, None, math.inf]
    assert found == expected == loads_yaml(text)[:-1] and revision == "0123456"
    assert [type(value) for value in found] == [type(value) for value in expected]


def test_the_longest_run_has_a_length():
    assert sys.maxsize >= params.MILLION**3  # of train.steps, train.accumulation and train.batch_size


@pytest.mark.parametrize(
    "refused_with, changed, told",
    [
        ({"train.adapt": "frozen"}, {"arms.methods": ["pause", "before"]}, "arms.methods has no_thought"),
        ({"train.adapt": "frozen"}, {"train.adapt": "lora"}, "arms.methods has no_thought"),
        (
            {"train.adapt": "frozen", "arms.methods": ["distilled"]},
            {"train.adapt": "lora"},
            "arms.methods has distilled, whose student has nothing to learn with train.adapt frozen",
        ),
        (
            {"train.stages": [STAGE]},
            {"arms.methods": ["quiet_star", "no_thought"]},
            "arms.methods has pause, whose pauses have one length: drop it, or make train.stages []",
        ),
        (
            {"arms.methods": ["quiet_star"], "train.stages": [STAGE, STAGE | {"lookahead": 47}]},
            {"train.stages": [STAGE], "train.lookahead": 47},
            "train.stages[1].lookahead is 47, but must be at most 46, two less than tokenize.span",
        ),
        (
            {"arms.methods": ["quiet_star"], "train.stages": [STAGE | {"steps": 15}] * 2, "train.log_steps": 2},
            {"train.log_steps": 3},
            "train.log_steps is 2, but a stage ends at step 15: make it a divisor, such as 1",
        ),
        ({"train.clip": "apart", "train.positions": 8}, {"train.positions": None}, "train.clip is apart, which needs"),
        (
            {"arms.methods": ["trained_swapped"], "train.batch_size": 1},
            {"train.batch_size": 2},
            "arms.methods has trained_swapped, which reads another text's thoughts: make train.batch_size at least 2",
        ),
        ({"train.advantage": "signed", "train.rationales": 1}, {"train.rationales": 2}, "train.advantage is signed"),
        (
            {"train.rationales": 1, "arms.methods": ["value", "quiet_star"]},
            {"arms.methods": ["value", "pause", "before"]},
            "train.advantage is signed",
        ),
        (
            {"train.rationales": 1, "train.advantage": "positive", "arms.methods": ["rlp"]},
            {"train.rationales": 2},
            "arms.methods has rlp, which compares thoughts at one position: make train.rationales at least 2",
        ),
        (
            {"train.rationales": 1, "arms.methods": ["distilled"]},
            {"train.advantage": "positive"},
            "train.advantage is signed",
        ),
        (
            {"train.stages": [STAGE | {"lookahead": 2}], "train.rlp.epochs": 2, "arms.methods": ["rlp"]},
            {"train.stages": []},
            "train.rlp.epochs is above 1, and a stage may end between a batch's epochs",
        ),
        (
            {"train.token_cost": 0.1},
            {"train.thoughts_end": True},
            "train.token_cost is for thoughts that end themselves",
        ),
    ],
)
def test_what_does_not_go_together_until_one_of_them_changes(refused_with: dict, changed: dict, told: str):
    assert refused(refused_with).startswith(told)
    assert params.load(SHIPPED, refused_with | changed)


def test_changes_take_the_place_of_what_the_file_lacks(tmp_path: Path):
    config = OmegaConf.load(SHIPPED)
    del config.report
    del config.train.lookahead
    OmegaConf.save(config, tmp_path / "params.yaml")
    loaded = params.load(tmp_path / "params.yaml", {"report.passages": 3, "train.lookahead": 4})
    assert (loaded.report.passages, loaded.train.lookahead) == (3, 4)


@settings(max_examples=30)
@given(st.floats(allow_nan=True))
def test_a_rate_is_positive_and_may_be_a_text(rate: float):
    """DVC writes 1e-5 as `1e-05`, which YAML 1.1 calls a string (dvc.md)."""
    if 0 < rate < math.inf:
        assert params.load(SHIPPED, {"train.learning_rate": rate}).train.learning_rate == rate
        assert params.load(SHIPPED, {"train.learning_rate": repr(rate)}).train.learning_rate == rate
    else:
        assert refused({"train.learning_rate": rate}).startswith("train.learning_rate")


def test_the_methods_are_those_of_the_model():
    """Named three times, as a stage depends on what it imports: a corpus that needs the model would be made anew."""
    assert params.METHODS == tuple(methods.METHODS) == tuple(report_method.METHODS)
