"""What several stages begin with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.files import write_tables
from pipeline.inputs import Spans
from pipeline.tokens import SPANS


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Spans [0, 0], [1, 1] ... [6, 6], in batches of one, three, none and three."""
    numbers = iter(range(7))
    tables = (
        pa.table({"input_ids": [np.full(2, next(numbers)) for _ in range(rows)], "length": [2] * rows}, schema=SPANS)
        for rows in (1, 3, 0, 3)
    )
    write_tables(tmp_path / "spans.arrow", tables, SPANS)
    return tmp_path / "spans.arrow"


def test_a_span_is_found_whichever_batch_it_is_in(file: Path):
    assert [span["input_ids"].tolist() for span in Spans(file)] == [[i, i] for i in range(7)]
    assert [int(span["text_keys"]) for span in Spans(file, rows=5)] == list(range(5))
