"""Ways to spoil a project that has run. Each function here returns one that takes the project's folder."""

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
from tests.stage_runner import run_stages, set_params

Spoil = Callable[[Path], None]


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
def replaced(project: Path, path: str, old: str, new: str) -> None:
    """Replace ``old`` by ``new`` in a text file."""
    text = (project / path).read_text()
    assert old in text
    (project / path).write_text(text.replace(old, new))


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
    """Cut a file short, as a killed copy leaves it."""
    (project / path).write_bytes((project / path).read_bytes()[:size])


def file(path: str) -> Spoil:
    """A file in place of the folder."""
    return each(gone(path), holds(path, b"no folder\n"))


def link(path: str) -> Spoil:
    """A link to nowhere in place of the file or folder."""
    return each(gone(path), lambda project: (project / path).symlink_to(project / "nowhere"))


@way
def no_rows(project: Path, path: str) -> None:
    pd.read_parquet(project / path).head(0).to_parquet(project / path)


@way
def hub(project: Path, **changes: object) -> None:
    """Take the data from small local folders in PROJECT/hub, then make these changes of parameters."""
    set_params(project, local_hub.sources(project / "hub"))
    params(**changes)(project)


def train_split(path: str, content: bytes) -> Spoil:
    """Take the training texts from this file, in a folder of its own."""
    source = {"path": f"PROJECT/{Path(path).parent}", "split": "train", "columns": "text"}
    return each(holds(path, content), hub(**{f"corpus__hub__train__{name}": value for name, value in source.items()}))


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
    """Set these values in a JSON file."""
    (project / path).write_text(json.dumps(json.loads((project / path).read_text()) | values))


@way
def weights(project: Path, path: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    """Change the tensors in a safetensors file."""
    save_file(change(load_file(project / path)), project / path, {"format": "pt"})


def another(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Change one number of one tensor."""
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
    stages = ("tokenize", "base_model", "train") if train else ("tokenize", "base_model")
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
def immutable(project: Path, path: str) -> Iterator[None]:
    """Make a folder immutable while the block lasts: root may write to a folder that is only read-only."""
    if shutil.which("chattr") is None:
        pytest.skip("no chattr")
    done = subprocess.run(["chattr", "+i", project / path], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr: {done.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", project / path], check=True)


@contextmanager
def small_disk(project: Path, path: str, room: int = 0) -> Iterator[None]:
    """While the block lasts, the folder is a file system with ``room`` bytes left."""
    kept = project / "kept"
    (project / path).rename(kept)
    (project / path).mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", project / path]
    mounted = subprocess.run(command, capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no small file system could be mounted: {mounted.stderr.decode().strip()}")
    try:
        shutil.copytree(kept, project / path, dirs_exist_ok=True)
        with pytest.raises(OSError), (project / path / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(b"x" * 4096)
        os.truncate(project / path / "filler", (project / path / "filler").stat().st_size - room)
        yield
    finally:
        subprocess.run(["umount", project / path], check=True)
