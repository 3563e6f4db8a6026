"""Corpora of any size that take no room on the disk: their texts and token ids are holes in Arrow files, read as zeros.

    python -m tests.simulate_data tokenize 40    # GB: stream and tokenize texts for a minute
    python -m tests.simulate_data train 40       # read spans in training's random order for a minute

Prints what was read, how fast, and the process's own memory (without pages of files) before and after.
"""

import sys
import time
from collections.abc import Iterator
from io import SEEK_CUR, FileIO
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
import pyarrow as pa

from pipeline.data.spans import SPANS, Spans
from pipeline.data.tokens.tokenize import TEXT, encoded, read_texts
from pipeline.files import BATCH_ROWS
from pipeline.training.trainer import TextOrder
from tests.evaluation.chain_of_thought.asking import byte_tokenizer

GIGA, MEGA = 1e9, 1e6
SPAN, TEXT_BYTES = 256, 2000
SECONDS = 60
HOLE = 2**17  # bytes: longer buffers become holes


class SparseFile(FileIO):
    """A file in which long buffers become holes."""

    def write(self, data: pa.Buffer | bytes) -> int:
        if len(data) < HOLE:
            return super().write(data)
        self.seek(len(data), SEEK_CUR)
        return len(data)


def sparse(path: Path, batch: pa.RecordBatch, size: float) -> Path:
    """Write ``batch`` until the file has ``size`` bytes."""
    with SparseFile(path, "w") as file, pa.ipc.new_stream(file, batch.schema) as writer:
        for _ in range(int(size / batch.nbytes)):
            writer.write_batch(batch)
    return path


def spans(folder: Path, size: float) -> Iterator[int]:
    offsets = np.arange(0, BATCH_ROWS * SPAN + 1, SPAN, dtype=np.int32)
    ids = pa.ListArray.from_arrays(offsets, pa.array(np.zeros(BATCH_ROWS * SPAN, np.int32)))
    lengths = pa.array(np.full(BATCH_ROWS, SPAN, np.int32))
    found = Spans(sparse(folder / "spans.arrow", pa.record_batch([ids, lengths], schema=SPANS), size), vocabulary=1)
    yield 0
    for text in TextOrder(len(found), wanted=len(found), seed=1):
        yield 4 * len(found[text]["input_ids"])


def texts(folder: Path, size: float) -> Iterator[int]:
    offsets = np.arange(0, (BATCH_ROWS + 1) * TEXT_BYTES, TEXT_BYTES, dtype=np.int32)
    column = pa.StringArray.from_buffers(BATCH_ROWS, pa.py_buffer(offsets), pa.py_buffer(bytes(offsets[-1])))
    path = sparse(folder / "texts.arrow", pa.record_batch([column], schema=TEXT), size)
    yield 0
    for _ in encoded(read_texts(path), byte_tokenizer()):
        yield TEXT_BYTES


def own_memory() -> float:
    memory = psutil.Process().memory_info()
    return (memory.rss - memory.shared) / MEGA


def main() -> None:
    kind, size = sys.argv[1], float(sys.argv[2]) * GIGA
    before = own_memory()
    with TemporaryDirectory(dir=".") as folder:
        sizes = {"tokenize": texts, "train": spans}[kind](Path(folder), size)
        next(sizes)
        began, count, read = time.monotonic(), 0, 0
        for some in sizes:
            count, read = count + 1, read + some
            if time.monotonic() - began > SECONDS:
                break
        took, after = time.monotonic() - began, own_memory()
    speed = f"{read / took / MEGA:.1f} MB/s"
    print(f"{kind} {size / GIGA:g}: {count} in {took:.1f} s, {speed}, {before:.0f} MB at first, {after:.0f} MB at last")


if __name__ == "__main__":
    main()
