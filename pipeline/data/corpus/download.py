"""Text splits from the hub, downloaded a block at a time; a run that was killed resumes behind its last whole block."""

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
    """Open the scratch of each split, with the blocks that killed runs have left.

    The scratches are removed when the ``with`` block ends without an error, so write the outputs inside it. A run does
    not resume from a local data set whose files have changed (by name, size or time).
    """
    with ExitStack() as stack:
        scratches = {}
        for split, source in sources.items():
            folder = Path(source.path).expanduser()
            local = looks_local(source.path) or folder.is_dir()
            files = [(path, path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()] if local else []
            about = {"seed": seed, **asdict(source), "files": [[str(p), s.st_size, s.st_mtime_ns] for p, s in files]}
            scratches[split] = stack.enter_context(unfinished(f"corpus/{split}", about, [], Path(__file__), LIBRARIES))
        yield scratches


def write_texts(sources: Mapping[str, HubSplit], seed: int, scratches: Mapping[str, Scratch], out: Path) -> None:
    """Write each split's documents to ``out``/SPLIT.arrow (column ``text``). Raises UserError where there are none.

    Each split draws with its own seed, so that two splits of one data set choose different rows.
    """
    for source in sources.values():  # tell of a mistake in any of them before hours of downloading
        hub.document(next(hub.rows(source)), source)
    for split, source in sources.items():
        files = list(_block_files(split, source, zlib.crc32(f"{seed}/{split}".encode()), scratches[split]))
        if not write_tables(out / f"{split}.arrow", map(arrow_table, files), TEXT):
            raise UserError(f"{hub.describe(source)} has no text")


def _block_files(split: str, source: HubSplit, seed: int, scratch: Scratch) -> Iterator[Path]:
    """Arrow files with the blocks of a split, in order: first those that earlier runs have kept, then new ones."""
    yield from (scratch.folder / row["file"] for row in scratch.rows)
    state = scratch.rows[-1]["state"] if scratch.rows else None
    rows = state["rows"] if state else 0
    with tqdm(desc=f"read {split}", total=source.rows, initial=rows, unit=" rows", mininterval=2) as progress:
        for number, block in enumerate(hub.blocks(source, seed, state), start=len(scratch.rows)):
            path = scratch.folder / f"{number:06d}.arrow"
            write_rows(path, ({"text": text} for text in block.texts), TEXT)
            scratch.add([{"file": path.name, "state": block.state}])  # the file is on the disk: `write_rows` waits
            progress.update(block.state["rows"] - progress.n)
            yield path
