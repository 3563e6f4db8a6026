"""Run the stages of a project copy: in this process, in a fork (`run_stage`) or by `python -m` (`run_as_module`).

This process uses this checkout's code. The fork, of a process that has loaded the libraries, imports the copy's own
code from the copy's folder, as `python -m` does, and is some ten times faster than that.
"""

import contextlib
import importlib
import multiprocessing
import os
import runpy
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import yaml
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf

from pipeline.preset import options as preset

ROOT = Path(__file__).parents[1]
ARMS = ("quiet_star 1", "pause 1", "untrained 1", "before 1")  # of the tiny project
EACH = ("train", "evaluate", "perplexity")
TRAIN, EVALUATE, PERPLEXITY = (f"{name} {ARMS[0]}" for name in EACH)
TRAINED = "models/trained/quiet_star-1"
STAGES = (  # with their arguments
    *("inputs", "corpus", "tasks", "tokenize", "base_model"),
    *(f"{name} {arm}" for name in EACH for arm in ARMS),
    *("compare", "chain_of_thought", "report", "release"),
)
ARCHITECTURES = ("auto.modeling_auto", "gpt2.modeling_gpt2", "llama.modeling_llama")
LIBRARIES = ["accelerate", "datasets", "omegaconf", "pandas", "transformers.trainer"]
LIBRARIES += [f"transformers.models.{module}" for module in ARCHITECTURES]
TINY = {
    "corpus.microworld.pretrain_documents": 150,
    "corpus.microworld.train_documents": 12,
    "corpus.microworld.heldout_documents": 6,
    "corpus.microworld.probe_documents": 3,
    "corpus.microworld.questions": 4,
    "tokenize.vocabulary": 500,
    "tokenize.pretrain_span": 32,
    "tokenize.span": 24,
    "base_model.scratch.architecture": "llama",
    "base_model.scratch.hidden_size": 16,
    "base_model.scratch.ffn_size": 24,
    "base_model.scratch.layers": 1,
    "base_model.scratch.steps": 3,
    "base_model.scratch.batch_size": 2,
    "arms.methods": [arm.split()[0] for arm in ARMS],
    "train.thought_tokens": 2,
    "train.lookahead": 2,
    "train.steps": 2,
    "train.batch_size": 2,
    "train.evaluation_steps": 1,
    "train.evaluation_texts": 4,
    "evaluate.questions": 4,
    "chain_of_thought.questions": 2,
    "chain_of_thought.new_tokens": 4,
    "chain_of_thought.answer_tokens": 2,
    "perplexity.texts": 4,
}
ENVIRONMENT = {"OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Finished:
    """How a stage ended. ``complaint`` is its standard error from the first error on, without what it logged before."""

    code: int
    stderr: str

    @property
    def complaint(self) -> list[str]:
        lines = self.stderr.replace("\r", "\n").splitlines()
        first = next((i for i, line in enumerate(lines) if line.startswith(("error:", "Traceback"))), len(lines))
        return lines[first:]


def copy_project(folder: Path, **changes: object) -> Path:
    """Copy code and tasks to ``folder``, with the smoke preset, `TINY` and ``changes`` (``__`` is a dot) on top."""
    for name in ("pipeline", "stages", "tasks", "launchers"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "params.yaml", folder)
    values = preset.options(["scale=smoke"]) | TINY
    set_params(folder, values | {name.replace("__", "."): value for name, value in changes.items()})
    return folder


def make_repository(folder: Path, stages: tuple[str, ...], call: Callable[..., object]) -> None:
    """Put a project copy under git and DVC, with these stages of dvc.yaml. ``call`` runs a command in the folder."""
    for name in (".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, folder)
    graph = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {name: graph[name] for name in stages}}))
    call(folder, "git", "init", "-q", "-b", "main")
    call(folder, "dvc", "init", "-q")
    call(folder, "git", "add", "-A")
    call(folder, "git", "commit", "-qm", "start")


def set_params(folder: Path, changes: dict[str, object]) -> None:
    config = OmegaConf.load(folder / "params.yaml")
    for name, value in changes.items():
        OmegaConf.update(config, name, value)
    OmegaConf.save(config, folder / "params.yaml")


def run_as_module(folder: Path, stage: str, environment: Mapping[str, str] | None = None) -> Finished:
    """Run `python -m stages.STAGE` in ``folder``, with these environment variables added."""
    name, *arguments = stage.split()
    done = subprocess.run(
        [sys.executable, "-m", f"stages.{name}", *arguments],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, **(environment or {})},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    return Finished(done.returncode, done.stderr)


def run_stage(folder: Path, stage: str, prepare: Callable[[], None] | None = None) -> Finished:
    """Run the same in a fork, which first calls ``prepare`` (a function at the top level of a test's module)."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(LIBRARIES)
    with tempfile.NamedTemporaryFile("r", suffix=".err") as stderr:
        process = context.Process(target=_main, args=(folder, stage, stderr.name, prepare))
        with mock.patch.dict(os.environ, ENVIRONMENT):  # the first start makes the process that the rest fork from
            process.start()
        process.join()
        return Finished(process.exitcode, stderr.read())


def _main(folder: Path, stage: str, stderr: str, prepare: Callable[[], None] | None) -> None:
    os.dup2(os.open(stderr, os.O_WRONLY), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.chdir(folder)
    for name in [m for m in sys.modules if m.partition(".")[0] in ("pipeline", "stages")]:
        del sys.modules[name]
    sys.path.insert(0, str(folder))
    name, *arguments = stage.split()
    sys.argv = [name, *arguments]
    if prepare is not None:
        prepare()
    runpy.run_module(f"stages.{name}", run_name="__main__")


def run_here(folder: Path, stage: str) -> None:
    """Run the stage's main function in this process, with this checkout's code, in ``folder``: the fastest way.

    A user's mistake is raised as UserError. For exit codes, printed lines and kills use `run_stage`.
    """
    name, *arguments = stage.split()
    main = importlib.import_module(f"stages.{name}").main
    AcceleratorState._reset_state(reset_partial_state=True)  # as another test may have trained in bfloat16
    with contextlib.chdir(folder):
        main(*arguments)


def run_stages(folder: Path, stages: tuple[str, ...] = STAGES) -> None:
    for stage in stages:
        run_here(folder, stage)
