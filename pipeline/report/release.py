"""The trained model as a folder to hand on: its files, and a card that says what it is and how well it does."""

import os
import shutil
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import new_path
from pipeline.models.trained import LEARNED, base_of, load_trained
from pipeline.report.card import CardInputs, model_card

CARD = "README.md"


def write_release(trained: Path, about: CardInputs, out: Path) -> None:
    """Write the folder ``out``: the files of ``trained``, weights as hard links where that works, and the card.

    Where ``trained`` holds only what was learned, the whole model is written, adapters merged. The same inputs give the
    same bytes. Raises UserError where there is no trained model, or no base model for it, or a file is malformed.
    """
    if not (trained / "config.json").is_file():
        raise UserError(f"{trained} holds no trained model: run `dvc repro train`")
    card = model_card(about)
    with new_path(out) as folder:
        if base_of(trained) is not None:
            load_trained(trained).save_pretrained(folder)
        for source in sorted(path for path in trained.rglob("*") if path.is_file() and path.name not in LEARNED):
            target = folder / source.relative_to(trained)
            target.parent.mkdir(parents=True, exist_ok=True)
            if not target.exists():  # the whole model has its own configuration
                _take(source, target)
        (folder / CARD).write_text(card, encoding="utf-8", newline="\n")


def _take(source: Path, target: Path) -> None:
    """A hard link of weights, which are large and never written to in place; a copy of anything else."""
    if source.suffix == ".safetensors":
        try:
            os.link(source.resolve(), target)
            return
        except OSError:  # another file system, or one without hard links
            pass
    shutil.copyfile(source, target)
