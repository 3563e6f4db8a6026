"""The trained model as a folder to hand on: its files, and a card that says what it is and how well it does."""

import json
import os
import shutil
from contextlib import suppress
from pathlib import Path

import pipeline.thought
from pipeline.errors import UserError
from pipeline.files import replacing, write_json
from pipeline.models.trained import LEARNED, base_of, load_trained
from pipeline.report.card import model_card

CODE = Path(pipeline.thought.__file__).parent
# where transformers finds the model's classes beside its weights, if it is told to trust them
AUTO_MAP = {"AutoConfig": "model.QuietStarConfig", "AutoModelForCausalLM": "model.QuietStarForCausalLM"}


def write_release(trained: Path, params_file: Path, results: Path, out: Path) -> None:
    """Write the folder ``out``: the files of ``trained``, weights as hard links where possible, and the model card.

    If ``trained`` holds only what was learned, the whole model is written, with adapters merged. The thought package's
    files lie beside it, so that it loads without this project, and the run's metrics. The same inputs give the same
    bytes. Raises UserError if there is no trained model, its base model is missing, or a file of ``results``
    cannot be read.
    """
    if not (trained / "config.json").is_file():
        raise UserError(f"{trained} holds no trained model: run `dvc repro train`")
    card = model_card(params_file, results)
    with replacing(out) as folder:
        if base_of(trained) is not None:
            load_trained(trained).save_pretrained(folder)
        for source in sorted(path for path in trained.rglob("*") if path.is_file() and path.name not in LEARNED):
            target = folder / source.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.exists():  # the whole model has its own configuration
                continue
            if source.suffix == ".safetensors":  # large and never written to in place, so a hard link is safe
                with suppress(OSError):  # another file system, or one without hard links
                    os.link(source.resolve(), target)
                    continue
            shutil.copyfile(source, target)
        add_code(folder)
        shutil.copyfile(results / "summary.json", folder / "metrics.json")
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")


def add_code(folder: Path) -> None:
    """Put the model's code beside its weights and name its classes in config.json, as transformers' loader wants it."""
    for source in sorted(set(CODE.glob("*.py")) - {CODE / "__init__.py"}):
        shutil.copyfile(source, folder / source.name)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    write_json(folder / "config.json", config | {"auto_map": AUTO_MAP})
