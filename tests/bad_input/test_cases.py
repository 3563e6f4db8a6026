"""The table of bad inputs: each row spoils a project that has run, and its stage then ends with one line.

Rows about params.yaml alone are in tests/test_params.py, about task files in tests/data/tasks.
"""

import os
import re
import shutil
from functools import partial
from pathlib import Path
from unittest import mock

import pytest

from pipeline.errors import UserError
from tests.bad_input import spoil
from tests.bad_input.spoil import (
    Spoil,
    config,
    each,
    few_positions,
    file,
    gone,
    holds,
    hub,
    link,
    model,
    no_gpu,
    params,
    pickled,
    ran,
    replaced,
    torn,
    train_split,
    weights,
)
from tests.stage_runner import run_here, run_stage

RINGS, WEIGHTS = "tasks/microworld/micro_rings.yaml", "model/model.safetensors"
BASE, TRAINED = "models/base/model.safetensors", "models/quiet_star/model.safetensors"
CONFIG = "models/quiet_star/config.json"
LAUNCHED = dict.fromkeys(("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "0")
CPUS = b"distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\n"
UNKNOWN = {"base_model__source": "hub", "base_model__path": "PROJECT/models/unknown"}
NO_NETWORK = {"base_model__source": "hub", "base_model__path": "nobody/nothing"}
LEARNED = {"train__adapt": "frozen", "train__saved": "learned", "baseline__methods": ["pause"]}


def environment(**variables: str) -> Spoil:
    """Environment variables, which the test sets back."""
    return lambda project: os.environ.update(variables)


def launched_by(content: bytes) -> Spoil:
    return each(holds("mine.yaml", content), params(train__launcher="mine.yaml"))


def trained_with(name: str, value: str) -> Spoil:
    """The trained model with another value in its configuration."""
    return replaced(CONFIG, f'"{name}": ', f'"{name}": {value}, "was": ')


def half_of_the_files_gone(project: Path) -> None:
    """As a cleared cache leaves it."""
    one = project / "hub/openai/gsm8k/main/train-00000-of-00001.parquet"
    one.rename(one.with_name("train-00000-of-00002.parquet"))
    one.with_name("train-00001-of-00002.parquet").symlink_to("../../blobs/0123")


def base_for_trained(project: Path) -> None:
    """A base model in the trained one's place."""
    shutil.rmtree(project / "models/quiet_star")
    shutil.copytree(project / "models/base", project / "models/quiet_star")


def nans(tensors: dict) -> dict:
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


def fewer(tensors: dict) -> dict:
    return dict(list(tensors.items())[1:])


# a stage with its arguments, what is wrong, and words of the message in their order, with … between
ROWS: list[tuple[str, Spoil, str]] = [
    # parameters, where a stage finds out
    ("baseline pause one", each(), "train.seed: Value 'one'"),
    ("baseline magic 1", each(), "train.method is magic, but must be one of quiet_star, pause, no_thought"),
    ("corpus", gone("params.yaml"), "params.yaml is missing: run from the project's root"),
    ("tokenize", params(tokenize__pretrain_span=10**6), "the pretrain text is too short"),
    ("tokenize", params(tokenize__span=4000, tokenize__packed=True), "the train text is too short"),
    ("train", params(train__learning_rate=1e30, train__steps=6), "held-out loss is … after step …learning rate"),
    ("train", params(train__learning_rate=1e4, train__steps=6, train__policy_weight=1e30), "step …not finite…texts …"),
    ("train", params(train__adapt="lora", train__lora__modules=["query"]), "no linear layer …query…down_proj"),
    ("train", each(no_gpu, params(train__device="cuda")), "device is cuda, but no CUDA GPU is usable"),
    ("train", each(no_gpu, params(train__attention="flex")), "attention is flex, which needs a CUDA GPU"),
    # launchers
    ("train", params(train__launcher="many"), "train.launcher is many, but must be single or a file"),
    ("train", params(train__launcher="tasks/gsm8k.yaml"), "tasks/gsm8k.yaml…distributed_type"),
    ("train", launched_by(b"distributed_type: [\n"), "mine.yaml is not readable YAML"),
    ("train", launched_by(b"distributed_type: 'NO'\n"), "mine.yaml has distributed_type NO"),
    ("train", launched_by(CPUS + b"processes: 2\n"), "mine.yaml cannot be launched"),
    ("train", launched_by(CPUS + b"gpu_ids: 0\n"), "mine.yaml cannot be launched"),
    ("train", launched_by(CPUS + b"num_machines: 2\n"), "2 machines: set MASTER_ADDR"),
    ("train", launched_by(CPUS + b"num_machines: two\n"), "mine.yaml is for two machines"),
    ("train", each(no_gpu, params(train__launcher="launchers/node.yaml")), "launchers/node.yaml …no CUDA GPU"),
    # data sets
    ("corpus", hub(corpus__hub__train__path="nobody/nothing"), "data set nobody/nothing, split train cannot be read"),
    ("corpus", hub(corpus__hub__train__split="extra"), "PROJECT/hub/openai/gsm8k, split extra cannot be read"),
    ("corpus", hub(corpus__hub__train__name="socratic"), "gsm8k, socratic, split train cannot be read"),
    ("corpus", each(hub(), half_of_the_files_gone), "train-00001-of-00002.parquet is a link to a file that does not"),
    ("corpus", each(holds("own", b"text\n"), hub(corpus__hub__train__path="PROJECT/own")), "PROJECT/own, split train"),
    ("corpus", train_split("own/train.txt", b"caf\xe9\n" * 5), "split train cannot be read"),
    ("corpus", train_split("own/train.jsonl", b'{"text": "fine"}\n{"text": \n'), "split train cannot be read"),
    ("corpus", each(hub(), torn("hub/openai/gsm8k/main/train-00000-of-00001.parquet")), "split train cannot be read"),
    # task files and questions
    ("tasks", link(RINGS), f"{RINGS} is not in the folder tasks"),
    ("tasks", torn(RINGS), f"{RINGS} is empty"),
    ("tasks", params(tasks__files=["tasks/\0.yaml"]), "tasks/�.yaml is no path"),
    (
        "tasks",
        replaced(RINGS, "{{ question", "{{ body"),
        "question 0: 'body' is undefined; its columns are question, an",
    ),
    # inputs from other stages: missing, cut short, something else in their place
    ("tasks", gone("data/corpus/tasks/rings"), "data/corpus/tasks/rings does not exist"),
    (
        "tasks",
        torn("data/corpus/tasks/rings/test.parquet"),
        "data set ./data/corpus/tasks/rings, split test cannot be read",
    ),
    ("tokenize", gone("data/corpus"), "data/corpus/texts/pretrain.arrow is missing or not an Arrow file"),
    ("tokenize", torn("data/corpus/texts/train.arrow"), "data/corpus/texts/train.arrow is missing or not an Arrow"),
    ("base_model", gone("data/tokens/tokenizer"), "data/tokens/tokenizer is missing: run `dvc repro`"),
    ("base_model", torn("data/tokens/tokenizer/tokenizer.json"), "data/tokens/tokenizer …tokenizer: run `dvc repro`"),
    ("base_model", gone("data/tokens/pretrain.arrow"), "data/tokens/pretrain.arrow is missing"),
    ("train", gone("models/base"), "models/base is missing: run `dvc repro`"),
    ("train", torn("data/tokens/train.arrow"), "data/tokens/train.arrow is missing or not an Arrow file"),
    ("train", gone("data/corpus/texts/probe.parquet"), "data/corpus/texts/probe.parquet is missing"),
    ("train", torn(BASE), "models/base…run `dvc repro`"),
    ("train", torn("models/base/config.json"), "models/base…run `dvc repro`"),
    ("train", weights(BASE, nans), "the weights in models/base are not all finite"),
    ("train", weights(BASE, fewer), "the weights in models/base are not those of its config.json"),
    ("train", each(params(tokenize__vocabulary=900), ran("tokenize")), "data/tokens/….arrow…run `dvc repro`"),
    ("evaluate", gone("models/base"), "models/base is missing: run `dvc repro`"),
    ("evaluate", gone("data/tasks"), "data/tasks holds no task: run `dvc repro tasks`"),
    ("evaluate", torn("data/tasks/micro_rings.parquet"), "data/tasks/micro_rings.parquet is missing or not a Parquet"),
    ("evaluate_baseline pause 1", gone("models/baseline/pause-1"), "models/baseline/pause-1 is missing"),
    ("compare", gone("results/evaluate/predictions.parquet"), "results/evaluate/predictions.parquet is missing"),
    ("compare", torn("results/evaluate/pause-1/predictions.parquet"), "pause-1/predictions.parquet is missing or"),
    ("chain_of_thought", gone("data/tasks"), "data/tasks holds no task: run `dvc repro tasks`"),
    ("perplexity", link("data/tokens/heldout.arrow"), "data/tokens/heldout.arrow is missing or not an Arrow file"),
    ("report", gone("results/compare"), "results/compare/figures.csv: no such file"),
    ("report", torn("results/train/metrics.json"), "results/train/metrics.json: cannot be read"),
    ("release", gone("results/evaluate/metrics.json"), "results/evaluate/metrics.json: no such file"),
    ("release", link("models"), "models/quiet_star holds no trained model"),
    # a base model of the user's
    ("base_model", params(**UNKNOWN), "there is no model at PROJECT/models/unknown"),
    ("base_model", params(**NO_NETWORK), "no usable model at nobody/nothing"),
    ("base_model", params(**UNKNOWN | {"base_model__path": "PROJECT/models/quiet_star"}), "is a trained Quiet-STaR"),
    ("tokenize", each(model(), gone("model/tokenizer.json", "model/tokenizer_config.json")), "no tokenizer at PROJECT"),
    ("tokenize", each(model(), torn("model/tokenizer.json")), "no tokenizer at PROJECT/model"),
    ("base_model", each(model(), torn(WEIGHTS)), "no usable model at PROJECT/model"),
    ("base_model", each(model(), pickled(WEIGHTS, WEIGHTS)), "no usable model at PROJECT/model"),
    (
        "base_model",
        each(model(), pickled("model/pytorch_model.bin", WEIGHTS)),
        "/model: Error no file named model.safetensors",
    ),
    ("base_model", spoil.own_code, "no usable model at PROJECT/model: …contains custom code"),
    (
        "base_model",
        each(model(), holds("model/config.json", b"{model_type: gpt2}")),
        "no usable model at PROJECT/model",
    ),
    ("base_model", each(model(), config("model/config.json", model_type="magic")), "no usable model at PROJECT"),
    ("base_model", each(model(), config("model/config.json", n_embd=32)), "not those of its config.json"),
    ("base_model", each(model(), config("model/config.json", n_layer=2)), "not those of its config.json: …h.1."),
    ("base_model", each(model(n_layer=2), config("model/config.json", n_layer=1)), "of more layers than …h.1."),
    ("base_model", each(model(), weights(WEIGHTS, nans)), "PROJECT/model are not all finite"),
    ("base_model", model("mamba", after=("tokenize",)), "PROJECT/model cannot think: mamba: …in parallel differs by"),
    ("base_model", model("bloom", after=("tokenize",)), "PROJECT/model cannot think: bloom: …in parallel differs by"),
    ("base_model", model(), "embeddings for 167 tokens, but its tokenizer has 500"),
    ("train", few_positions(48, span=48), "a span and its last thought need 53 positions, …has 48"),
    ("train", few_positions(48, span=16), "a probe's prompt …need 63 positions, …has 48"),
    ("evaluate", few_positions(48, span=16, train=True), "micro_animals (base) needs 80 positions, …has 48"),
    # the trained model
    ("evaluate", gone("models/quiet_star"), "models/quiet_star is missing: run `dvc repro`"),
    ("perplexity", gone("models/quiet_star"), "models/quiet_star holds no trained model: run `dvc repro train`"),
    ("evaluate", base_for_trained, "models/quiet_star holds a llama model, not a trained Quiet-STaR one"),
    ("evaluate", torn(TRAINED), "the model in models/quiet_star cannot be read"),
    ("perplexity", torn(CONFIG), "models/quiet_star holds no trained model"),
    ("evaluate", pickled(TRAINED, TRAINED), "the model in models/quiet_star cannot be read"),
    ("evaluate", pickled("models/quiet_star/pytorch_model.bin", TRAINED), "quiet_star…no file named model"),
    ("evaluate", weights(TRAINED, fewer), "weights in models/quiet_star are not those of its config.json: base"),
    ("evaluate", weights(TRAINED, nans), "the weights in models/quiet_star are not all finite numbers"),
    ("perplexity", trained_with("intermediate_size", "32"), "weights in models/quiet_star are not those of its config"),
    ("perplexity", trained_with("hidden_size", '"x"'), "quiet_star cannot be read: Validation error …'hidden_size'"),
    ("perplexity", trained_with("base", '"x"'), "quiet_star cannot be read: base must be the configuration"),
    ("perplexity", trained_with("thought_tokens", '"x"'), "quiet_star cannot be read: thought_tokens is 'x'"),
    ("release", each(params(**LEARNED), ran("train"), gone("models/base")), "models/quiet_star…in models/base"),
    # places to write to
    ("evaluate", file("results/evaluate"), "Not a directory: results/evaluate/predictions.parquet.part"),
    ("corpus", file("data/corpus"), "Not a directory: data/corpus/texts.part"),
    ("chain_of_thought", file(".resume"), "Not a directory: .resume/chain_of_thought/"),
    # the environment
    ("chain_of_thought", environment(DVC_ROOT="params.yaml"), "Not a directory: params.yaml/.resume/chain_of_thought/"),
    ("chain_of_thought", environment(DVC_ROOT="/proc"), "No such file or directory: /proc/.resume"),
    ("train", environment(WORLD_SIZE="abc", **LAUNCHED), "the environment variable WORLD_SIZE is 'abc'"),
    ("train", each(launched_by(CPUS), environment(NNODES="two")), "the environment variable NNODES is 'two'"),
    ("train", each(launched_by(CPUS), environment(NNODES="0")), "mine.yaml is for 0 machines"),
    ("train", each(launched_by(CPUS), environment(MASTER_PORT="99999")), "mine.yaml cannot be launched"),
]


def contents(folder: Path) -> dict[str, bytes | str]:
    """Every file's bytes and every link's target, by path."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = str(path.readlink())
        elif path.is_file():
            found[str(path.relative_to(folder))] = path.read_bytes()
    return {name: content for name, content in found.items() if "__pycache__" not in name}


def changed(project: Path, before: dict[str, bytes | str]) -> list[str]:
    """Files that are not as before, but for those that a stage's next run resumes from."""
    folders = [rows.parent for rows in project.glob(".resume/**/rows.jsonl") if rows.stat().st_size]
    kept = {str(path.relative_to(project)) for folder in folders for path in folder.iterdir()}
    after = {name: content for name, content in contents(project).items() if name not in kept}
    return [name for name in before.keys() | after.keys() if before.get(name) != after.get(name)]


def says(message: str, words: str, project: Path) -> bool:
    """Whether the message has these ``words`` in their order."""
    pattern = ".*".join(map(re.escape, words.replace("PROJECT", str(project)).split("…")))
    return re.search(pattern, message) is not None


@pytest.mark.parametrize("stage, spoil, words", ROWS, ids=[f"{stage}: {words}" for stage, _, words in ROWS])
def test_a_bad_input(stage: str, spoil: Spoil, words: str, finished: Path, tmp_path: Path):
    """The stage ends with a message that has these words, and leaves every file as it was."""
    project = tmp_path / "project"
    shutil.copytree(finished, project, ignore=shutil.ignore_patterns("pipeline", "stages"))  # this checkout's run
    with mock.patch.dict(os.environ):
        spoil(project)
        before = contents(project)
        with pytest.raises((UserError, OSError)) as error:
            run_here(project, stage)
    message = str(error.value)
    if isinstance(error.value, OSError):
        message = f"{error.value.strerror}: {error.value.filename}"
    assert says(message, words, project), message
    assert changed(project, before) == []


def set_variables(environment: dict[str, str]) -> None:
    os.environ.update(environment)


def ends_with_one_line(project: Path, stage: str, words: str, environment: dict[str, str]) -> None:
    """In a process of its own: exit code 1, one line, and every file as it was."""
    before = contents(project)
    done = run_stage(project, stage, partial(set_variables, environment))
    assert done.code == 1, done.stderr
    (line,) = done.complaint
    assert line.startswith("error: ") and says(line, words, project), line
    assert changed(project, before) == []


FULL, READ_ONLY = (spoil.small_disk, "No space left on device"), (spoil.immutable, "Operation not permitted")


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage, folder, failure, changes",
    [
        ("corpus", "data", FULL, {"corpus__microworld__pretrain_documents": 30_000}),
        ("tasks", "data", FULL, {}),
        ("tokenize", "data", FULL, {}),
        ("base_model", "models", FULL, {"base_model__scratch__hidden_size": 256}),
        ("train", "models", FULL, {}),
        ("train", ".resume", FULL, {}),
        ("train", ".resume/train/quiet_star", READ_ONLY, {}),
        ("baseline pause 1", "models", FULL, {}),
        ("evaluate", "results", FULL, {}),
        ("evaluate_baseline pause 1", "results", FULL, {}),
        ("compare", "results/compare", READ_ONLY, {}),
        ("chain_of_thought", ".resume", FULL, {}),
        ("perplexity", "results", FULL, {}),
        ("report", "results/report", READ_ONLY, {}),
        ("release", "models", FULL, {}),
    ],
)
def test_a_stage_that_cannot_write(
    stage: str, folder: str, failure: tuple, changes: dict[str, object], finished: Path, tmp_path: Path
):
    project = shutil.copytree(finished, tmp_path / "project")
    params(**changes)(project)
    cannot_write, message = failure
    with cannot_write(project, folder):
        ends_with_one_line(project, stage, f"{message}: {folder}/", {})


@pytest.mark.slow
@pytest.mark.parametrize(
    "accumulation, environment, words",
    [
        (2, {"GLOO_SOCKET_IFNAME": "nowhere"}, "the processes lost each other (…nowhere…): `dvc repro`"),
        (1, {}, "train.accumulation is 1, but 2 processes share"),
    ],
)
def test_launched_processes_that_fail_alike(
    accumulation: int, environment: dict[str, str], words: str, finished: Path, tmp_path: Path
):
    project = shutil.copytree(finished, tmp_path / "project")
    params(train__launcher="launchers/cpus.yaml", train__accumulation=accumulation)(project)
    ends_with_one_line(project, "train", words, environment)
