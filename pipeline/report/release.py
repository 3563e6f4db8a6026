"""The trained model as a folder to hand on: its files, and a card that says what it is and how well it does."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.models.trained import LEARNED, base_of, load_trained
from pipeline.report.card import model_card


def write_release(trained: Path, params_file: Path, results: Path, out: Path) -> None:
    """Write the folder ``out``: the files of ``trained``, weights as hard links where possible, and the model card.

    If ``trained`` holds only what was learned, the whole model is written, with adapters merged. The same inputs give
    the same bytes. Raises UserError if there is no trained model, its base model is missing, or a file of ``results``
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
        (folder / "README.md").write_text(card, encoding="utf-8", newline="\n")
