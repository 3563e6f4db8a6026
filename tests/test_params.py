"""What params.yaml may say, and how it is refused."""

import math
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from pipeline import params
from pipeline.errors import UserError
from pipeline.thought import model

SHIPPED = Path(__file__).parents[1] / "params.yaml"
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def test_the_shipped_file_loads():
    loaded = params.load(SHIPPED)
    assert isinstance(loaded.train, params.Train)
    assert loaded.train.lookahead <= loaded.tokenize.span - 2


def refused(changes: dict[str, object]) -> str:
    with pytest.raises(UserError) as error:
        params.load(SHIPPED, changes)
    assert "\n" not in str(error.value)
    return str(error.value)


def refused_file(path: Path, changes: dict[str, object]) -> str:
    """The complaint about a file with these changes, which may put anything anywhere."""
    config = OmegaConf.load(SHIPPED)
    for name, value in changes.items():
        OmegaConf.update(config, name, value, merge=False)
    OmegaConf.save(config, path)
    with pytest.raises(UserError) as error:
        params.load(path)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    "name, value",
    [
        ("train.steps", "ten"),
        ("train.steps", 1.5),
        ("train.steps", True),
        ("train.steps", None),
        ("train.steps", 0),
        ("train.steps", -1),
        ("train.learning_rate", 0.0),
        ("train.learning_rate", -1e-4),
        ("train.learning_rate", math.nan),
        ("train.learning_rate", math.inf),
        ("train.learning_rate", "fast"),
        ("train.policy_weight", -1.0),
        ("train.weight_decay", -0.1),
        ("train.gradient_clip", 0.0),
        ("corpus.hub.train.columns", "a+b+c"),
        ("plan.devices", 0),
        ("plan.flops", 0.0),
        ("train.lookahead", 10_000),
        ("train.device", "tpu"),
        ("train.meta_token_text", ""),
        ("train.seed", -1),
        ("base_model.seed", 2**32),
        ("evaluate.seed", 2**63),
        ("evaluate.thought_temperature", -0.5),
        ("evaluate.questions", 0),
        ("perplexity.texts", 0),
        ("tokenize.packed", "perhaps"),
        ("tokenize.vocabulary", 257),
        ("tokenize.pretrain_span", 1),
        ("corpus.source", "internet"),
        ("corpus.microworld.aside_share", 1.5),
        ("corpus.microworld.aside_share", math.nan),
        ("corpus.hub.train.rows", 0),
        ("base_model.scratch.architecture", "bloom"),
        ("base_model.scratch.learning_rate", math.nan),
        ("report.passages", 0),
        ("train.method", "thinking"),
        ("train.adapt", "half"),
        ("train.saved", "learned"),
        ("train.saved", "adapters"),
        ("train.optimizer", "sgd"),
        ("train.lora.rank", 0),
        ("train.lora.alpha", 0.0),
        ("train.lora.modules", []),
        ("train.lora.modules", "q_proj"),
        ("tasks.files", []),
        ("tasks.files", "tasks/gsm8k.yaml"),
        ("baseline.methods", ["pause", "thinking"]),
        ("baseline.methods", "pause"),
        ("baseline.seeds", [1, -1]),
        ("baseline.seeds", [2**32]),
        ("baseline.seeds", ["one"]),
        ("baseline.seeds", None),
        ("compare.bootstrap_samples", 0),
        ("compare.seed", -1),
        ("chain_of_thought.questions", 0),
        ("chain_of_thought.samples", 0),
        ("chain_of_thought.temperature", 0.0),
        ("chain_of_thought.temperature", math.nan),
        ("chain_of_thought.thought_temperature", -0.5),
        ("chain_of_thought.new_tokens", 0),
        ("chain_of_thought.answer_tokens", 0),
    ],
)
def test_a_value_that_cannot_be_is_refused_by_name(name: str, value: object):
    assert name in refused({name: value})


@pytest.mark.parametrize(
    "name",
    [
        *("tokenize.vocabulary", "tokenize.span", "tokenize.pretrain_span"),
        *(f"base_model.scratch.{name}" for name in ("hidden_size", "layers", "ffn_size", "steps", "batch_size")),
        *(f"train.{name}" for name in ("steps", "batch_size", "accumulation", "rationales", "lora.rank")),
        *("chain_of_thought.samples", "chain_of_thought.new_tokens"),
        *(f"{stage}.bootstrap_samples" for stage in ("evaluate", "compare", "chain_of_thought", "perplexity")),
        *(f"{stage}.batch_size" for stage in ("evaluate", "chain_of_thought", "perplexity")),
    ],
)
def test_a_size_that_no_machine_could_hold_is_refused_by_name(name: str):
    assert f"{name} is {params.MILLION + 1}, but must be " in refused({name: params.MILLION + 1})


def test_the_longest_run_has_a_length():
    assert sys.maxsize >= params.MILLION**3  # of train.steps, train.accumulation and train.batch_size


@pytest.mark.parametrize("name, value", [("train.method", "no_thought"), ("baseline.methods", ["pause", "no_thought"])])
def test_nothing_to_learn_on_a_frozen_base_model(name: str, value: object):
    changes = {"train.adapt": "frozen", "baseline.methods": ["pause"]}
    assert params.load(SHIPPED, changes).train.adapt == "frozen"
    assert refused(changes | {name: value}).startswith(f"{SHIPPED}: {name} has no_thought, which has nothing to learn")
    assert params.load(SHIPPED, changes | {name: value, "train.adapt": "lora"})


@pytest.mark.parametrize("section", ["corpus", "corpus.microworld", "corpus.hub.train", "train", "base_model.scratch"])
@pytest.mark.parametrize("value", ["big", 3, None, [1, 2]])
def test_a_value_for_a_section(section: str, value: object, tmp_path: Path):
    """`-S model=big` puts a string where a section was (dvc.md)."""
    assert f"{section} is {value}" in refused_file(tmp_path / "params.yaml", {section: value})


@pytest.mark.parametrize("name", ["extra", "train.extra", "corpus.hub.extra", "corpus.hub.train.extra"])
def test_an_unknown_key(name: str, tmp_path: Path):
    assert name in refused_file(tmp_path / "params.yaml", {name: 1})


@pytest.mark.parametrize(
    "name", ["train.steps", "corpus.microworld.questions", "corpus.hub.train.path", "tasks.files", "report.passages"]
)
def test_a_missing_key(name: str, tmp_path: Path):
    assert name in refused_file(tmp_path / "params.yaml", {name: "???"})
    section, _, key = name.rpartition(".")
    config = OmegaConf.load(SHIPPED)
    del OmegaConf.select(config, section)[key]
    OmegaConf.save(config, tmp_path / "params.yaml")
    with pytest.raises(UserError, match=name):
        params.load(tmp_path / "params.yaml")


@pytest.mark.parametrize(
    "text", [b"", b"- 1", b"train", b"train: [", b"\xff\xfe", b"train: {}\ntrain: {}", b"train: ${nope}", b"3"]
)
def test_a_file_that_is_no_params(text: bytes, tmp_path: Path):
    path = tmp_path / "params.yaml"
    path.write_bytes(text)
    with pytest.raises(UserError, match="params.yaml"):
        params.load(path)


def test_no_file(tmp_path: Path):
    with pytest.raises(UserError, match="is missing"):
        params.load(tmp_path / "params.yaml")
    with pytest.raises(UserError, match="not readable"):
        params.load(tmp_path)


@pytest.mark.parametrize("sizes", [(30, 4, 4), (32, 4, 3), (12, 4, 4)])
def test_heads_that_do_not_divide(sizes: tuple[int, int, int]):
    names = ("hidden_size", "heads", "key_value_heads")
    message = refused({f"base_model.scratch.{name}": size for name, size in zip(names, sizes, strict=True)})
    assert all(f"({size})" in message for size in sizes[:2])


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(3, 40))
def test_a_lookahead_needs_a_longer_span(lookahead: int, span: int):
    changes = {"train.lookahead": lookahead, "tokenize.span": span}
    if lookahead <= span - 2:
        assert params.load(SHIPPED, changes).train.lookahead == lookahead
    else:
        assert "train.lookahead" in refused(changes)


def test_positions_leave_room_for_a_thought():
    room = params.LONGEST_TEXT - 10 - 2 - 1
    sizes = {"tokenize.span": 10, "train.lookahead": 2}
    assert params.load(SHIPPED, sizes | {"train.thought_tokens": room}).train.thought_tokens == room
    assert "train.thought_tokens" in refused(sizes | {"train.thought_tokens": room + 1})


def test_a_hub_model_needs_a_path():
    assert "base_model.path" in refused({"base_model.source": "hub", "base_model.path": None})


def test_a_run_may_have_no_baselines_and_any_of_the_methods():
    assert params.load(SHIPPED, {"baseline.methods": [], "baseline.seeds": []}).baseline == params.Baseline([], [])
    for method in params.METHODS:
        loaded = params.load(SHIPPED, {"train.method": method, "baseline.methods": list(params.METHODS)})
        assert loaded.train.method == method and loaded.baseline.methods == list(params.METHODS)


@settings(max_examples=30)
@given(st.floats(min_value=1e-300, allow_infinity=False))
def test_a_positive_rate_is_taken_as_it_is_also_as_text(rate: float):
    """DVC writes 1e-5 as `1e-05`, which YAML 1.1 calls a string (dvc.md)."""
    assert params.load(SHIPPED, {"train.learning_rate": rate}).train.learning_rate == rate
    assert params.load(SHIPPED, {"train.learning_rate": repr(rate)}).train.learning_rate == rate


@settings(max_examples=30)
@given(st.floats(max_value=0) | st.just(math.inf) | st.just(math.nan))
def test_any_other_rate_is_refused(rate: float):
    assert "train.learning_rate" in refused({"train.learning_rate": rate})


@settings(max_examples=30)
@given(FINITE)
def test_a_share_is_within_0_and_1(share: float):
    changes = {"corpus.microworld.aside_share": share}
    if 0 <= share <= 1:
        assert params.load(SHIPPED, changes).corpus.microworld.aside_share == share
    else:
        assert "aside_share" in refused(changes)


@settings(max_examples=30)
@given(st.integers())
def test_a_seed_is_a_number_that_every_generator_takes(seed: int):
    if 0 <= seed < 2**32:
        assert params.load(SHIPPED, {"train.seed": seed}).train.seed == seed
    else:
        assert "train.seed" in refused({"train.seed": seed})


def test_the_methods_are_those_of_the_model():
    """Named twice, as a stage depends on what it imports: a corpus that needs the model would be made anew with it."""
    assert params.METHODS == model.METHODS
