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
import yaml
from safetensors.torch import load_file, save_file

from tests import local_hub
from tests.stage_runner import run_stages, set_params

Spoil = Callable[[Path], None]


def each(*ways: Spoil) -> Spoil:
    """All of these, in order; none changes nothing."""

    def spoil(project: Path) -> None:
        for way in ways:
            way(project)

    return spoil


def params(**changes: object) -> Spoil:
    """Other parameters. ``__`` in a name stands for a dot, PROJECT in a text for the project's folder."""

    def spoil(project: Path) -> None:
        values = {k: v.replace("PROJECT", str(project)) if isinstance(v, str) else v for k, v in changes.items()}
        set_params(project, {name.replace("__", "."): value for name, value in values.items()})

    return spoil


def replaced(path: str, old: str, new: str) -> Spoil:
    """Replace ``old`` by ``new`` in a text file."""

    def spoil(project: Path) -> None:
        text = (project / path).read_text()
        assert old in text
        (project / path).write_text(text.replace(old, new))

    return spoil


def holds(path: str, content: bytes) -> Spoil:
    def spoil(project: Path) -> None:
        (project / path).parent.mkdir(parents=True, exist_ok=True)
        (project / path).write_bytes(content)

    return spoil


def gone(*paths: str) -> Spoil:
    def spoil(project: Path) -> None:
        for path in paths:
            one = project / path
            shutil.rmtree(one) if one.is_dir() and not one.is_symlink() else one.unlink()

    return spoil


def torn(path: str) -> Spoil:
    """Cut a file short, as a killed copy leaves it."""
    return lambda project: (project / path).write_bytes((project / path).read_bytes()[:40])


def folder(path: str) -> Spoil:
    """A folder in place of the file."""
    return each(gone(path), lambda project: (project / path).mkdir())


def file(path: str) -> Spoil:
    """A file in place of the folder."""
    return each(gone(path), holds(path, b"no folder\n"))


def link(path: str) -> Spoil:
    """A link to nowhere in place of the file or folder."""
    return each(gone(path), lambda project: (project / path).symlink_to(project / "nowhere"))


def rows(path: str, *some: dict) -> Spoil:
    """A Parquet file of these rows."""
    return lambda project: pd.DataFrame(list(some)).to_parquet(project / path)


def no_rows(path: str) -> Spoil:
    return lambda project: pd.read_parquet(project / path).head(0).to_parquet(project / path)


def task(**changes: object) -> Spoil:
    """Set these values in the first task's file."""
    path = "tasks/microworld/micro_rings.yaml"

    def spoil(project: Path) -> None:
        values = yaml.safe_load((project / path).read_text()) | changes
        (project / path).write_text(yaml.safe_dump(values))

    return spoil


def hub(**changes: object) -> Spoil:
    """Take the data from small local folders in PROJECT/hub, then make these changes of parameters."""

    def spoil(project: Path) -> None:
        set_params(project, local_hub.sources(project / "hub"))
        params(**changes)(project)

    return spoil


def train_split(path: str, content: bytes, columns: str = "text") -> Spoil:
    """Take the training texts from this file, in a folder of its own."""
    source = {"path": f"PROJECT/{Path(path).parent}", "split": "train", "columns": columns}
    return each(holds(path, content), hub(**{f"corpus__hub__train__{name}": value for name, value in source.items()}))


def train_rows(*some: dict) -> Spoil:
    """Take the training texts from a Parquet file with these rows."""
    return each(
        lambda project: (project / "own").mkdir(),
        rows("own/train.parquet", *some),
        hub(corpus__hub__train__path="PROJECT/own", corpus__hub__train__split="train"),
    )


def torn_parquet(project: Path) -> None:
    train_rows(*local_hub.gsm8k_rows(50))(project)
    path = project / "own/train.parquet"
    path.write_bytes(path.read_bytes()[:-20])


def model(architecture: str = "gpt2", after: tuple[str, ...] = (), **sizes: object) -> Spoil:
    """Take a tiny model in PROJECT/model as the base model, and run the stages ``after`` that."""

    def spoil(project: Path) -> None:
        local_hub.model_folder(project / "model", architecture, **sizes)
        set_params(project, {"base_model.source": "hub", "base_model.path": str(project / "model")})
        run_stages(project, after)

    return spoil


def ran(*stages: str) -> Spoil:
    return lambda project: run_stages(project, stages)


def config(path: str, **values: object) -> Spoil:
    """Set these values in a JSON file."""

    def spoil(project: Path) -> None:
        (project / path).write_text(json.dumps(json.loads((project / path).read_text()) | values))

    return spoil


def weights(path: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    """Change the tensors in a safetensors file."""

    def spoil(project: Path) -> None:
        save_file(change(load_file(project / path)), project / path, {"format": "pt"})

    return spoil


def another(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Change one number of one tensor."""
    name = min(tensors)
    changed = tensors[name].clone()
    changed.view(-1)[0] += 0.5
    return tensors | {name: changed}


def overflowing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Make a mixing head's weights so large, but finite, that the logits with thoughts are not finite."""
    return {name: 1e25 * value if name.startswith("mixing_head") else value for name, value in tensors.items()}


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


def pickled(path: str, safetensors: str) -> Spoil:
    """The weights as a pickle, which can run any code: this one leaves a file behind when it is loaded."""

    def spoil(project: Path) -> None:
        (project / safetensors).unlink()
        torch.save({"weight": Touch()}, project / path)

    return spoil


def pickled_model(name: str) -> Spoil:
    return each(model(), pickled(f"model/{name}", "model/model.safetensors"))


class Touch:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("CODE_WAS_RUN"),)


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
