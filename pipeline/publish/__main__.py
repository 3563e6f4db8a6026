"""Upload a release to the Hugging Face hub: weights, tokenizer, code, model card and metrics.

    hf auth login
    python -m pipeline.publish ORG/NAME

`models/release` is what the stage `release` wrote; its card then names the model as the hub does.
"""

import argparse
import json
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from pipeline.errors import UserError, reason, run

NEEDED = ("config.json", "model.safetensors", "README.md", "metrics.json")
IN_CARD = '"models/release"'  # the folder that every release's card loads the model from, wherever the release is
CODE = "model.py"
PICKLED = {".bin", ".pt", ".pth", ".ckpt", ".pkl"}  # which can run any code when they are read


def main(arguments: list[str] | None = None) -> None:
    """Upload a folder in one commit and print its address. Raises UserError where the hub or the folder refuses."""
    about = "Upload a release to the Hugging Face hub."
    parser = argparse.ArgumentParser(prog="python -m pipeline.publish", description=about)
    parser.add_argument("name", help="of the model on the hub, ORG/NAME; it is made if there is none")
    parser.add_argument("--folder", type=Path, default=Path("models/release"), help="what to upload (models/release)")
    parser.add_argument("--private", action="store_true", help="make it a private model")
    options = parser.parse_args(arguments)
    files = sorted(path for path in options.folder.rglob("*") if path.is_file())
    check_release(options.folder, files)
    operations = [
        CommitOperationAdd(str(path.relative_to(options.folder)), _named(path, options.name)) for path in files
    ]
    try:
        hub = HfApi()
        address = hub.create_repo(options.name, private=options.private, exist_ok=True)
        if options.private and not hub.repo_info(options.name).private:  # it was there before, and stays as it was
            raise UserError("there is a public model of that name, which --private does not change")
        hub.create_commit(options.name, operations, commit_message="A Quiet-STaR model, its card and its metrics")
    except Exception as error:  # huggingface_hub and its HTTP client raise many types
        raise UserError(f"{options.name} was not published: {reason(error)}") from error
    print(f"{address}: {len(files)} files, {sum(path.stat().st_size for path in files) / 1e6:,.1f} MB")


def check_release(folder: Path, files: list[Path]) -> None:
    """Raise UserError if the folder with these files is no release, or has pickled ones."""
    found = {str(path.relative_to(folder)) for path in files}
    weights = {"model.safetensors"} if "model.safetensors.index.json" in found else set()  # then they are shards
    for name in (name for name in NEEDED if name not in found | weights):
        raise UserError(f"{folder} is no release, as it has no {name}: run `dvc repro release`")
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{folder} is no release, as its config.json is broken: run `dvc repro release`") from error
    if "auto_map" in config and CODE not in found:
        raise UserError(f"{folder} is no release, as it has no {CODE}, its config.json's code: run `dvc repro release`")
    for path in (path for path in files if path.suffix in PICKLED):
        raise UserError(f"{path} may be pickled, which can run any code when it is read: weights must be safetensors")


def _named(path: Path, name: str) -> Path | bytes:
    """A file, or the card's bytes, whose example then loads the model from the hub. Raises UserError if it has none."""
    if path.name != "README.md":
        return path
    card = path.read_text(encoding="utf-8")
    if IN_CARD not in card:
        raise UserError(f"{path} does not load {IN_CARD}, which would become {name}: run `dvc repro release`")
    return card.replace(IN_CARD, f'"{name}"').encode()


if __name__ == "__main__":
    run(main, anywhere=True)
