"""The corpus stage: texts to learn from and questions to ask, made from a seed or taken from the hub.

Texts from the hub come a block at a time: a run that was killed resumes behind the last whole block.
"""

import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import islice, product
from pathlib import Path

import pyarrow as pa
from tqdm import tqdm

from pipeline.data.corpus import hub, microworld
from pipeline.errors import UserError
from pipeline.files import arrow_table, files_below, replacing, write_rows, write_tables
from pipeline.params import Corpus, HubSplit
from pipeline.resume import Scratch, resumable

TEXT = pa.schema({"text": pa.string()})
PROBE = pa.schema(dict.fromkeys(("task", "prompt", "working"), pa.string()))
QUESTION = {"question": pa.string(), "group": pa.string()}
LABELLED = pa.struct({"label": pa.list_(pa.string()), "text": pa.list_(pa.string())})
QUESTIONS = {
    "rings": pa.schema(QUESTION | {"answer": pa.string(), "moves": pa.int64()}),
    "animals": pa.schema(QUESTION | {"choices": LABELLED, "answerKey": pa.string()}),
}
ROWS_TRIED = 1000  # for the first that is in a part
LIBRARIES = ("datasets", "pyarrow")  # whose versions a resumed download depends on


def write_corpus(params: Corpus, pretrain: bool, texts: Path, tasks: Path) -> None:
    """Write the text splits as Arrow, and the micro-world's questions as data sets in the hub's layout, as Parquet.

    ``texts`` gets pretrain, train and heldout (column ``text``) and probe (``task``, ``prompt``, ``working``): prompts
    whose full working is known, to see whether thoughts hold it; the hub's texts have none. Without ``pretrain`` that
    split is empty, as a base model that is taken as it is needs none.
    """
    splits = [split for split in microworld.TEXT_SPLITS if pretrain or split != "pretrain"]
    sources = {split: getattr(params.hub, split) for split in splits} if params.source == "hub" else {}
    world, seed = params.microworld, params.seed
    moves, kinds = (world.moves.fewest, world.moves.most), asdict(world.kinds)
    with kept_splits(sources, seed) as kept, replacing(texts) as folder, replacing(tasks) as task_folder:
        write_rows(folder / "pretrain.arrow", [], TEXT)
        if params.source == "hub":
            write_texts(sources, seed, kept, folder)
            probe = []
        else:
            for split in splits:
                count = getattr(world, f"{split}_documents")
                share = {"pretrain": world.aside_share, "train": world.train_aside_share}.get(split, 0.0)
                worked = world.worked_share if split == "pretrain" else 0.0
                documents = microworld.documents(split, count, seed, moves, share, worked, kinds)
                shown = tqdm(documents, desc=f"corpus {split}", unit=" documents", total=count, mininterval=2)
                write_rows(folder / f"{split}.arrow", ({"text": document} for document in shown), TEXT)
            asked = [task for task in microworld.TASKS if kinds[task]]
            probe = microworld.probe(asked, world.probe_documents, seed, moves)
        write_rows(folder / "probe.parquet", probe, PROBE)
        for (task, columns), split in product(QUESTIONS.items(), ("validation", "test")):
            rows = microworld.questions(task, split, world.questions, world.question_seed, moves)
            write_rows(task_folder / f"{task}/{split}.parquet", rows, columns)


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
            files = [(path, path.stat()) for path in filter(Path.is_file, files_below(folder))]  # [] of a hub name
            about = {"seed": seed, **asdict(source), "files": [[str(p), s.st_size, s.st_mtime_ns] for p, s in files]}
            scratches[split] = stack.enter_context(resumable(f"corpus/{split}", about, [], Path(__file__), LIBRARIES))
        yield scratches


def write_texts(sources: Mapping[str, HubSplit], seed: int, scratches: Mapping[str, Scratch], out: Path) -> None:
    """Write each split's documents to ``out``/SPLIT.arrow (column ``text``). Raises UserError where there are none.

    Each split draws with its own seed, so that two splits of one data set choose different rows.
    """
    for source in sources.values():  # tell of a mistake in any of them before hours of downloading
        some = islice(hub.rows(source), ROWS_TRIED)
        next((hub.document(row, source) for row in some if hub.in_part(row, source)), None)
    for split, source in sources.items():
        scratch, split_seed = scratches[split], zlib.crc32(f"{seed}/{split}".encode())
        state = scratch.rows[-1]["state"] if scratch.rows else hub.START
        with tqdm(desc=split, total=source.rows, initial=state["rows"], unit=" rows", mininterval=2) as progress:
            blocks = hub.blocks(source, split_seed, state)
            for number, (texts, after) in enumerate(blocks, start=len(scratch.rows)):
                file = f"{number:06d}.arrow"
                write_rows(scratch.folder / file, ({"text": text} for text in texts), TEXT)  # on the disk when it ends
                scratch.add([{"file": file, "state": after}])
                progress.update(after["rows"] - progress.n)
        tables = (arrow_table(scratch.folder / row["file"]) for row in scratch.rows)
        if not write_tables(out / f"{split}.arrow", tables, TEXT):
            raise UserError(f"{hub.describe(source)} has no text")
