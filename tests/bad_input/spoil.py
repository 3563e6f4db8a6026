"""Ways to spoil a project that has run: each makes a function of its folder."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from pipeline.files import write_tables
from tests import local_hub
from tests.stage_runner import run_stages, set_params

Spoil = Callable[[Path], None]


def each(*ways: Spoil) -> Spoil:
    """One after the other."""

    def spoil(project: Path) -> None:
        for way in ways:
            way(project)

    return spoil


def params(**changes: object) -> Spoil:
    """Other parameters; ``__`` in a name is a dot, PROJECT in a text the project's folder."""

    def spoil(project: Path) -> None:
        values = {k: v.replace("PROJECT", str(project)) if isinstance(v, str) else v for k, v in changes.items()}
        set_params(project, {name.replace("__", "."): value for name, value in values.items()})

    return spoil


def replaced(path: str, old: str, new: str) -> Spoil:
    """A text file with ``new`` for ``old``."""

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
    """As a killed copy leaves it."""
    return lambda project: (project / path).write_bytes((project / path).read_bytes()[:40])


def folder(path: str) -> Spoil:
    """A folder in place of the file."""
    return each(gone(path), lambda project: (project / path).mkdir())


def file(path: str) -> Spoil:
    """A file in place of the folder."""
    return each(gone(path), holds(path, b"no folder\n"))


def link(path: str) -> Spoil:
    """A link to nowhere in its place."""
    return each(gone(path), lambda project: (project / path).symlink_to(project / "nowhere"))


def rows(path: str, *some: dict) -> Spoil:
    """A Parquet file of these rows."""
    return lambda project: pd.DataFrame(list(some)).to_parquet(project / path)


def arrow(path: str, **columns: list) -> Spoil:
    """An Arrow file of these columns."""
    table = pa.table(columns)
    return lambda project: write_tables(project / path, [table], table.schema)


def no_rows(path: str) -> Spoil:
    return lambda project: pd.read_parquet(project / path).head(0).to_parquet(project / path)


def task(**changes: object) -> Spoil:
    """The first task's file, with these values on top; a value that is ... is left out."""
    path = "tasks/microworld/micro_rings.yaml"

    def spoil(project: Path) -> None:
        values = yaml.safe_load((project / path).read_text()) | changes
        text = yaml.safe_dump({name: value for name, value in values.items() if value is not ...})
        (project / path).write_text(text)

    return spoil


def task_text(content: bytes) -> Spoil:
    return holds("tasks/microworld/micro_rings.yaml", content)


def hub(**changes: object) -> Spoil:
    """Data from small local folders in PROJECT/hub, then ``params`` with these changes."""

    def spoil(project: Path) -> None:
        set_params(project, local_hub.sources(project / "hub"))
        params(**changes)(project)

    return spoil


def train_split(path: str, content: bytes, columns: str = "text") -> Spoil:
    """The training texts from a file of a folder of its own."""
    source = {"path": f"PROJECT/{Path(path).parent}", "split": "train", "columns": columns}
    return each(holds(path, content), hub(**{f"corpus__hub__train__{name}": value for name, value in source.items()}))


def train_rows(*some: dict) -> Spoil:
    """The training texts from a Parquet file with these rows."""
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
    """A base model in PROJECT/model, with the stages in ``after`` run on it."""

    def spoil(project: Path) -> None:
        local_hub.model_folder(project / "model", architecture, **sizes)
        set_params(project, {"base_model.source": "hub", "base_model.path": str(project / "model")})
        run_stages(project, after)

    return spoil


def ran(*stages: str) -> Spoil:
    return lambda project: run_stages(project, stages)


def config(path: str, **values: object) -> Spoil:
    """A JSON file with these values on top."""

    def spoil(project: Path) -> None:
        (project / path).write_text(json.dumps(json.loads((project / path).read_text()) | values))

    return spoil


def weights(path: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Spoil:
    """A safetensors file with its tensors changed."""

    def spoil(project: Path) -> None:
        save_file(change(load_file(project / path)), project / path, {"format": "pt"})

    return spoil


def another(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """One number of one tensor is another."""
    name = min(tensors)
    changed = tensors[name].clone()
    changed.view(-1)[0] += 0.5
    return tensors | {name: changed}


def overflowing(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Finite weights of a mixing head that make logits of thoughts which are not."""
    return {name: 1e25 * value if name.startswith("mixing_head") else value for name, value in tensors.items()}


def own_code(project: Path) -> None:
    """A model whose folder has code of its own, which leaves a file behind when it is run."""
    model()(project)
    code = "from pathlib import Path\nPath('CODE_WAS_RUN').touch()\nfrom transformers import GPT2Config as Mine\n"
    (project / "model/mine.py").write_text(code)
    auto_map = {"AutoConfig": "mine.Mine", "AutoModelForCausalLM": "mine.Mine"}
    config("model/config.json", model_type="mine", auto_map=auto_map)(project)


def pickled(path: str, safetensors: str) -> Spoil:
    """The weights as a pickle that leaves a file behind when it is loaded, which any code could."""

    def spoil(project: Path) -> None:
        (project / safetensors).unlink()
        torch.save({"weight": Touch()}, project / path)

    return spoil


class Touch:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("CODE_WAS_RUN"),)


def no_gpu(project: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU, so it is right to ask for one")


@contextmanager
def immutable(project: Path, path: str) -> Iterator[None]:
    """A folder that cannot be written to. Not merely read-only, as root may write to what is read-only."""
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
    """The folder is a file system with room for what is there and ``room`` bytes more."""
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
