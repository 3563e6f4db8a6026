"""Digests of what a run reads from outside the graph: local data sets, a base model's folder, a launcher's file."""

import json
from contextlib import suppress
from pathlib import Path

from pipeline.data.tasks.spec import read_task
from pipeline.files import digests, files_below, looks_local, replacing, write_json
from pipeline.params import Params

MADE = Path("data/corpus/tasks")  # by the graph itself, which watches it
SEEN = "inputs.seen.json"  # beside the output


def write_inputs(params: Params, out: Path) -> None:
    """Write corpus, tasks, base_model and launcher.json to ``out``: digests by path and file, none of a hub name.

    A file whose path, size and time are those of an earlier call is not read again.
    """
    corpus, base, root = params.corpus, params.base_model, params.tasks.root
    asked = [read_task(Path(file)).data.path for file in params.tasks.files]
    if root is not None:
        asked = [path if looks_local(path) else str(Path(root, path)) for path in asked]
    groups = {
        "corpus": [split.path for split in vars(corpus.hub).values()] if corpus.source == "hub" else [],
        "tasks": [path for path in asked if MADE not in Path(path).parents],
        "base_model": [base.path] if base.source == "hub" else [],
        "launcher": [params.train.launcher],
    }
    known: dict[str, str] = {}
    seen: dict[str, str] = {}
    with suppress(OSError, ValueError):
        known = json.loads((out.parent / SEEN).read_text(encoding="utf-8"))
    with replacing(out) as folder:
        folder.mkdir()
        for name, paths in groups.items():
            found = {path: _digests(Path(path).expanduser(), known, seen) for path in paths}
            write_json(folder / f"{name}.json", found)
    write_json(out.parent / SEEN, seen)


def _digests(path: Path, known: dict[str, str], seen: dict[str, str]) -> dict[str, str]:
    """SHA-256 by relative path of a file or of all files in a folder. Puts them into ``seen``; trusts ``known``."""
    found = {}
    for file in [path] if path.is_file() else filter(Path.is_file, files_below(path)):
        about = file.stat()
        key = f"{file.absolute()} {about.st_size} {about.st_mtime_ns}"
        seen[key] = known[key] if key in known else digests(file)["."]
        found[file.relative_to(path).as_posix()] = seen[key]
    return found
