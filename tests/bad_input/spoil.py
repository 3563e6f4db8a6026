"""Ways to spoil a project that has run, and the table of what its stages then say.

A way is a function of the project's folder; most functions here return one. Rows about params.yaml alone are in
tests/test_params.py, about task files in tests/data/tasks.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests import local_hub
from tests.stage_runner import EVALUATE, PERPLEXITY, TRAIN, TRAINED, run_stages, set_params

Spoil = Callable[[Path], None]
RINGS, WEIGHTS = "tasks/microworld/micro_rings.yaml", "model/model.safetensors"
BASE, WHOLE = "models/base/model.safetensors", f"{TRAINED}/model.safetensors"
CONFIG = f"{TRAINED}/config.json"
LAUNCHED = dict.fromkeys(("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"), "0")
CPUS = b"distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\n"
UNKNOWN = {"base_model__source": "hub", "base_model__path": "PROJECT/models/unknown"}
LEARNED = {"train__adapt": "frozen", "train__saved": "learned", "arms__methods": ["quiet_star"]}


def way(change: Callable[..., None]) -> Callable[..., Spoil]:
    """Turn ``change(project, ...)`` into a function of the other arguments that returns a way to spoil a project."""
    return lambda *args, **options: lambda project: change(project, *args, **options)


@way
def each(project: Path, *ways: Spoil) -> None:
    """All of these, in order; none changes nothing."""
    for one in ways:
        one(project)


@way
def params(project: Path, **changes: object) -> None:
    """Other parameters. ``__`` in a name stands for a dot, PROJECT in a text for the project's folder."""
    values = {k: v.replace("PROJECT", str(project)) if isinstance(v, str) else v for k, v in changes.items()}
    set_params(project, {name.replace("__", "."): value for name, value in values.items()})


@way
def holds(project: Path, path: str, content: bytes) -> None:
    (project / path).parent.mkdir(parents=True, exist_ok=True)
    (project / path).write_bytes(content)


@way
def gone(project: Path, *paths: str) -> None:
    for one in (project / path for path in paths):
        shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()


@way
def torn(project: Path, path: str, size: int = 40) -> None:
    (project / path).write_bytes((project / path).read_bytes()[:size])


def file(path: str) -> Spoil:
    return each(gone(path), holds(path, b"no folder\n"))


def link(path: str) -> Spoil:
    return each(gone(path), lambda project: (project / path).symlink_to(project / "nowhere"))


@way
def no_rows(project: Path, path: str) -> None:
    pd.read_parquet(project / path).head(0).to_parquet(project / path)


@way
def hub(project: Path, **changes: object) -> None:
    """Take the data from small local folders in PROJECT/hub, then make these changes of parameters."""
    set_params(project, local_hub.sources(project / "hub"))
    params(**changes)(project)


@way
def model(project: Path, architecture: str = "gpt2", after: tuple[str, ...] = (), **sizes: object) -> None:
    """Take a tiny model in PROJECT/model as the base model, and run the stages ``after`` that."""
    local_hub.model_folder(project / "model", architecture, **sizes)
    set_params(project, {"base_model.source": "hub", "base_model.path": str(project / "model")})
    run_stages(project, after)


@way
def ran(project: Path, *stages: str) -> None:
    run_stages(project, stages)


@way
def config(project: Path, path: str, **values: object) -> None:
    (project / path).write_text(json.dumps(json.loads((project / path).read_text()) | values))


@way
def weights(project: Path, path: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    save_file(change(load_file(project / path)), project / path, {"format": "pt"})


def another(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    name = min(tensors)
    changed = tensors[name].clone()
    changed.view(-1)[0] += 0.5
    return tensors | {name: changed}


def own_code(project: Path) -> None:
    """Take a base model whose folder has code, which leaves a file behind when it is run."""
    model()(project)
    code = "from pathlib import Path\nPath('CODE_WAS_RUN').touch()\nfrom transformers import GPT2Config as Mine\n"
    (project / "model/mine.py").write_text(code)
    auto_map = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}
    config("model/config.json", model_type="mine", auto_map=auto_map)(project)


def few_positions(positions: int, span: int, train: bool = False) -> Spoil:
    """A base model with so many position embeddings, texts of ``span`` tokens and, with ``train``, a trained model."""
    stages = ("tokenize", "base_model", TRAIN) if train else ("tokenize", "base_model")
    probes = no_rows("data/corpus/texts/probe.parquet") if train else each()
    return each(probes, params(tokenize__span=span), model(after=stages, n_positions=positions))


class Touch:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("CODE_WAS_RUN"),)


@way
def pickled(project: Path, path: str, safetensors: str) -> None:
    """The weights as a pickle, which can run any code: this one leaves a file behind when it is loaded."""
    (project / safetensors).unlink()
    torch.save({"weight": Touch()}, project / path)


def no_gpu(project: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so it is right to ask for one")


@contextmanager
def small_disk(project: Path, path: str, room: int = 0) -> Iterator[None]:
    """While the block lasts, the folder is a file system with ``room`` bytes left."""
    kept, filler = project / "kept", project / path / "filler"
    (project / path).rename(kept)
    (project / path).mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", project / path], capture_output=True)
    if mounted.returncode:
        pytest.skip(mounted.stderr.decode().strip())
    try:
        shutil.copytree(kept, project / path, dirs_exist_ok=True)
        with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        os.truncate(filler, filler.stat().st_size - room)
        yield
    finally:
        subprocess.run(["umount", project / path], check=True)


def environment(**variables: str) -> Spoil:
    return lambda project: os.environ.update(variables)


def launched_by(content: bytes) -> Spoil:
    return each(holds("mine.yaml", content), params(train__launcher="mine.yaml"))


def half_of_the_files_gone(project: Path) -> None:
    one = project / "hub/openai/gsm8k/main/train-00000-of-00001.parquet"
    one.rename(one.with_name("train-00000-of-00002.parquet"))
    one.with_name("train-00001-of-00002.parquet").symlink_to("../../blobs/0123")


def nans(tensors: dict) -> dict:
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


# a stage with its arguments, what is wrong, and words of the message in their order, with … between
ROWS: list[tuple[str, Spoil, str]] = [
    # parameters, where a stage finds out
    ("train pause one", each(), "arms.seeds[0]: Value 'one'"),
    ("train magic 1", each(), "arms.methods is ['magic'], but must be one of quiet_star, no_policy, shuffled_reward"),
    ("tokenize", params(tokenize__pretrain_span=10**6), "the pretrain text is too short"),
    (TRAIN, params(train__learning_rate=1e30, train__steps=6), "held-out loss is … after step …learning rate"),
    (TRAIN, params(train__learning_rate=1e4, train__steps=6, train__policy_weight=1e38), "step …not finite…texts …"),
    (TRAIN, params(train__adapt="lora", train__lora__modules=["query"]), "no linear layer …query…down_proj"),
    (TRAIN, each(no_gpu, params(train__device="cuda")), "device is cuda, but no CUDA GPU is usable"),
    (TRAIN, each(no_gpu, params(train__attention="flex")), "attention is flex, which needs a CUDA GPU"),
    # launchers
    (TRAIN, params(train__launcher="many"), "train.launcher is many, but must be single or a file"),
    (EVALUATE, params(evaluate__launcher="many"), "evaluate.launcher is many, but must be single or a file"),
    (TRAIN, params(train__launcher="tasks/gsm8k.yaml"), "tasks/gsm8k.yaml…distributed_type"),
    (TRAIN, launched_by(b"distributed_type: [\n"), "mine.yaml is not readable YAML"),
    (TRAIN, launched_by(CPUS + b"processes: 2\n"), "mine.yaml cannot be launched"),
    (TRAIN, launched_by(CPUS + b"num_machines: 2\n"), "2 machines: set MASTER_ADDR"),
    (TRAIN, launched_by(CPUS + b"num_machines: two\n"), "mine.yaml is for two machines"),
    (TRAIN, each(no_gpu, params(train__launcher="launchers/node.yaml")), "launchers/node.yaml …no CUDA GPU"),
    # data sets
    ("corpus", hub(corpus__hub__train__path="nobody/nothing"), "data set nobody/nothing, split train cannot be read"),
    ("corpus", hub(corpus__hub__train__split="extra"), "PROJECT/hub/openai/gsm8k, split extra cannot be read"),
    ("corpus", each(hub(), half_of_the_files_gone), "train-00001-of-00002.parquet is a link to a file that does not"),
    # task files and questions
    ("tasks", link(RINGS), f"{RINGS} is not in the folder tasks"),
    ("tasks", torn(RINGS), f"{RINGS} is empty"),
    ("tasks", params(tasks__files=["tasks/\0.yaml"]), "tasks/�.yaml is no path"),
    # inputs from other stages: missing, cut short, something else in their place
    ("tasks", gone("data/corpus/tasks/rings"), "data/corpus/tasks/rings does not exist"),
    ("tasks", torn("data/corpus/tasks/rings/test.parquet"), "/data/corpus/tasks/rings, split test cannot be read"),
    ("tokenize", gone("data/corpus"), "data/corpus/texts/pretrain.arrow is missing or not an Arrow file"),
    ("base_model", gone("data/tokens/tokenizer"), "data/tokens/tokenizer is missing: run `dvc repro`"),
    ("base_model", torn("data/tokens/tokenizer/tokenizer.json"), "data/tokens/tokenizer …tokenizer: run `dvc repro`"),
    (TRAIN, gone("models/base"), "models/base is missing: run `dvc repro`"),
    (TRAIN, gone("data/corpus/texts/probe.parquet"), "data/corpus/texts/probe.parquet is missing"),
    (TRAIN, torn(BASE), "models/base…run `dvc repro`"),
    (TRAIN, each(params(tokenize__vocabulary=900), ran("tokenize")), "data/tokens/….arrow…run `dvc repro`"),
    (EVALUATE, gone("data/tasks"), "data/tasks holds no task: run `dvc repro tasks`"),
    (EVALUATE, torn("data/tasks/micro_rings.parquet"), "data/tasks/micro_rings.parquet is missing or not a Parquet"),
    ("compare", gone("results/evaluate/pause-1/predictions.parquet"), "pause-1/predictions.parquet is missing"),
    ("report", gone("results/compare"), "results/compare/figures.csv: no such file"),
    # a base model of the user's
    ("base_model", params(**UNKNOWN), "there is no model at PROJECT/models/unknown"),
    ("base_model", params(**UNKNOWN | {"base_model__path": "nobody/nothing"}), "no usable model at nobody/nothing"),
    ("base_model", params(**UNKNOWN | {"base_model__path": f"PROJECT/{TRAINED}"}), "is a trained Quiet-STaR"),
    ("tokenize", each(model(), gone("model/tokenizer.json", "model/tokenizer_config.json")), "no tokenizer at PROJECT"),
    ("base_model", each(model(), pickled("model/pytorch_model.bin", WEIGHTS)), "/model: Error no file named model"),
    ("base_model", own_code, "no usable model at PROJECT/model: …contains custom code"),
    ("base_model", each(model(), config("model/config.json", n_embd=32)), "not those of its config.json"),
    ("base_model", each(model(), config("model/config.json", n_layer=2)), "not those of its config.json: …h.1."),
    ("base_model", each(model(n_layer=2), config("model/config.json", n_layer=1)), "of more layers than …h.1."),
    ("base_model", each(model(), weights(WEIGHTS, nans)), "PROJECT/model are not all finite"),
    (
        "base_model",
        model("mamba", after=("tokenize",)),
        "PROJECT/model cannot think: mamba: it does not use transformers",
    ),
    ("base_model", model(), "embeddings for 167 tokens, but its tokenizer has 500"),
    (TRAIN, few_positions(48, span=48), "a span and its last thought need 53 positions, …has 48"),
    (TRAIN, few_positions(48, span=16), "a probe's prompt …need 82 positions, …has 48"),
    (EVALUATE, few_positions(48, span=16, train=True), "question of micro_animals …need 79 positions, …has 48"),
    # the trained model
    (EVALUATE, gone(TRAINED), f"{TRAINED} holds no trained model: run `dvc repro train`"),
    (PERPLEXITY, gone(TRAINED), f"the folder {TRAINED} is missing: run `dvc repro`"),
    (EVALUATE, config(CONFIG, model_type="llama"), f"{TRAINED} holds a llama model, not a trained"),
    (EVALUATE, torn(WHOLE), f"the model in {TRAINED} cannot be read"),
    (EVALUATE, pickled(f"{TRAINED}/pytorch_model.bin", WHOLE), "quiet_star-1…no file named model"),
    (EVALUATE, weights(WHOLE, lambda t: dict([*t.items()][1:])), "quiet_star-1 are not those of its config.json"),
    (EVALUATE, weights(WHOLE, nans), f"the weights in {TRAINED} are not all finite numbers"),
    (PERPLEXITY, config(CONFIG, base="x"), "quiet_star-1 cannot be read: base must be the configuration"),
    (PERPLEXITY, config(CONFIG, thought_tokens="x"), "quiet_star-1 cannot be read: thought_tokens is 'x'"),
    ("release", each(params(**LEARNED), ran(TRAIN), gone("models/base")), f"{TRAINED}…in models/base"),
    # places to write to
    (EVALUATE, file("results/evaluate"), "Not a directory: results/evaluate/quiet_star-1"),
    ("chain_of_thought", file(".resume"), "Not a directory: .resume/chain_of_thought/"),
    # the environment
    ("chain_of_thought", environment(DVC_ROOT="/proc"), "No such file or directory: /proc/.resume"),
    (TRAIN, environment(WORLD_SIZE="abc", **LAUNCHED), "the environment variable WORLD_SIZE is 'abc'"),
    (TRAIN, each(launched_by(CPUS), environment(NNODES="0")), "mine.yaml is for 0 machines"),
]
