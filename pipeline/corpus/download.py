"""Text splits from the hub, a stretch at a time: a download that breaks off goes on where it was."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from pipeline.corpus import hub
from pipeline.errors import UserError
from pipeline.files import arrow_table, write_rows, write_tables
from pipeline.params import HubSplit
from pipeline.resume import Scratch, unfinished

TEXT = pa.schema({"text": pa.string()})


def write_texts(sources: Mapping[str, HubSplit], seed: int, out: Path) -> None:
    """Write each split's documents to ``out``/SPLIT.arrow (column ``text``). Raises UserError where there are none."""
    about = {"seed": seed} | {split: asdict(source) | _local_files(source) for split, source in sources.items()}
    with unfinished("corpus", about, []) as scratch:
        for split, source in sources.items():
            files = list(_stretches(split, source, seed, scratch))
            if not write_tables(out / f"{split}.arrow", map(arrow_table, files), TEXT):
                raise UserError(f"{hub.describe(source)} has no text")


def _stretches(split: str, source: HubSplit, seed: int, scratch: Scratch) -> Iterator[Path]:
    """Arrow files with the split's documents, in order: those that earlier runs have kept, then the others."""
    kept = [row for row in scratch.rows if row["split"] == split]
    yield from (scratch.folder / row["file"] for row in kept)
    state = kept[-1]["state"] if kept else None
    rows = state["rows"] if state else 0
    with tqdm(desc=f"read {split}", total=source.rows, initial=rows, unit=" rows", mininterval=2) as progress:
        for number, block in enumerate(hub.blocks(source, seed, state), start=len(kept)):
            path = scratch.folder / f"{split}-{number:06d}.arrow"
            write_rows(path, ({"text": text} for text in block.texts), TEXT)
            scratch.add([{"split": split, "file": path.name, "state": block.state}])
            progress.update(block.state["rows"] - progress.n)
            yield path


def _local_files(source: HubSplit) -> dict:
    """What tells that a local data set has changed: its files, their sizes and times."""
    files = sorted(path for path in Path(source.path).rglob("*") if path.is_file()) if _is_local(source) else []
    return {"files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]}


def _is_local(source: HubSplit) -> bool:
    return hub.looks_local(source.path) or Path(source.path).is_dir()
