"""What several stages begin with."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from pipeline.data.spans import SPANS, Spans
from pipeline.errors import UserError
from pipeline.files import write_tables


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
    assert [span["input_ids"].tolist() for span in Spans(file, 7)] == [[i, i] for i in range(7)]
    assert [int(span["text_keys"]) for span in Spans(file, 7, rows=5)] == list(range(5))


def refused(path: Path, vocabulary: int = 7) -> str:
    with pytest.raises(UserError) as error:
        spans = Spans(path, vocabulary)
        for index in range(len(spans)):
            spans[index]
    return str(error.value).replace(str(path), "FILE")


FOR_ANOTHER = "FILE does not hold spans for this model: run `dvc repro` to make it again"
COLUMNS = "FILE does not hold the columns input_ids: list<item: int32>, length: int32: run `dvc repro` to make it again"


def test_ids_that_the_model_does_not_have(file: Path):
    assert refused(file, 6) == FOR_ANOTHER
    assert len(Spans(file, 6, rows=6)) == 6  # what is not used is not read


@pytest.mark.parametrize(
    "ids, lengths",
    [
        ([[1, 2], [1, 2, 3]], [2, 2]),
        ([[1, 2], [1]], [2, 2]),
        ([[1, 2], [1, None]], [2, 2]),
        ([[1, 2], [1, -1]], [2, 2]),
        ([[1, 2], []], [2, 2]),
        ([[], []], [0, 0]),
        ([[1, 2], [1, 2]], [2, 3]),
        ([[1, 2], [1, 2]], [2, -1]),
    ],
)
def test_rows_that_are_no_spans(ids: list, lengths: list, tmp_path: Path):
    path = tmp_path / "spans.arrow"
    write_tables(path, [pa.table({"input_ids": ids, "length": lengths}, schema=SPANS)], SPANS)
    assert refused(path) == FOR_ANOTHER


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"ids": [[1, 2]]}),
        pa.table({"input_ids": ["ab"], "length": pa.array([2], pa.int32())}),
        pa.table({"input_ids": [[1.5, 2.5]], "length": [2]}),
        pa.table({"input_ids": [[1, 2], None], "length": [2, 2]}, schema=SPANS),
        pa.table({"input_ids": [[1, 2]], "length": [None]}, schema=SPANS),
    ],
)
def test_other_columns(table: pa.Table, tmp_path: Path):
    write_tables(tmp_path / "spans.arrow", [table], table.schema)
    assert refused(tmp_path / "spans.arrow") == COLUMNS
