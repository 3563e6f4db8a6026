"""Text splits from the hub, a stretch at a time: a download that breaks off goes on where it was."""

import os
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from pipeline.data.corpus import hub
from pipeline.errors import UserError
from pipeline.files import arrow_table, looks_local, write_rows, write_tables
from pipeline.params import HubSplit
from pipeline.resume import Scratch, unfinished

TEXT = pa.schema({"text": pa.string()})
LIBRARIES = ("datasets", "pyarrow")


@contextmanager
def kept_splits(sources: Mapping[str, HubSplit], seed: int) -> Iterator[dict[str, Scratch]]:
    """What earlier runs have of each split, which goes once the block has ended well: outputs are written inside it."""
    with ExitStack() as stack:
        scratches = {}
        for split, source in sources.items():
            about = {"seed": seed} | asdict(source) | _local_files(source)
            scratches[split] = stack.enter_context(unfinished(f"corpus/{split}", about, [], Path(__file__), LIBRARIES))
        yield scratches


def write_texts(sources: Mapping[str, HubSplit], seed: int, scratches: Mapping[str, Scratch], out: Path) -> None:
    """Write each split's documents to ``out``/SPLIT.arrow (column ``text``). Raises UserError where there are none.

    The splits have seeds of their own, so that two of one data set are not the same choice.
    """
    for source in sources.values():  # before hours of downloading one, whether all can be read
        hub.check(source)
    for split, source in sources.items():
        files = list(_stretches(split, source, zlib.crc32(f"{seed}/{split}".encode()), scratches[split]))
        if not write_tables(out / f"{split}.arrow", map(arrow_table, files), TEXT):
            raise UserError(f"{hub.describe(source)} has no text")


def _stretches(split: str, source: HubSplit, seed: int, scratch: Scratch) -> Iterator[Path]:
    """Arrow files with the split's documents, in order: those that earlier runs have kept, then the others."""
    yield from (scratch.folder / row["file"] for row in scratch.rows)
    state = scratch.rows[-1]["state"] if scratch.rows else None
    rows = state["rows"] if state else 0
    with tqdm(desc=f"read {split}", total=source.rows, initial=rows, unit=" rows", mininterval=2) as progress:
        for number, block in enumerate(hub.blocks(source, seed, state), start=len(scratch.rows)):
            path = scratch.folder / f"{number:06d}.arrow"
            write_rows(path, ({"text": text} for text in block.texts), TEXT)
            _to_disk(path)
            scratch.add([{"file": path.name, "state": block.state}])
            progress.update(block.state["rows"] - progress.n)
            yield path


def _to_disk(path: Path) -> None:
    """Before a row tells of a file, file and name are on the disk: a power cut may come at any moment."""
    for one in (path, path.parent):
        descriptor = os.open(one, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)


def _local_files(source: HubSplit) -> dict:
    """What tells that a local data set has changed: its files, their sizes and times."""
    folder = Path(source.path).expanduser()
    local = looks_local(source.path) or folder.is_dir()
    files = sorted(path for path in folder.rglob("*") if path.is_file()) if local else []
    return {"files": [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in files]}
