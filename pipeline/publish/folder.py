"""The folder that a conversion writes."""

from pathlib import Path

from pipeline.errors import UserError


def new_folder(out: Path) -> Path:
    """The absolute path of ``out``. Raises UserError if something is there, other than an empty folder."""
    found = out.resolve()
    if found.exists() and (not found.is_dir() or any(found.iterdir())):
        raise UserError(f"{out} exists and is not empty: name a new folder, or remove that one first")
    return found
