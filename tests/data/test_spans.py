"""Spans: how documents are cut into them, and how a file of them is read as a data set."""

from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.spans import IGNORED, SPANS, Spans, one_each, packed, write_spans
from pipeline.errors import UserError
from pipeline.files import write_tables

PADDING = -7
DOCUMENTS = st.lists(st.lists(st.integers(0, 50), max_size=12), max_size=12)


def arrays(some: list[list[int]]) -> list[np.ndarray]:
    return [np.array(ids, np.int32) for ids in some]


@given(DOCUMENTS, st.integers(1, 9))
def test_packed_spans_are_the_documents_in_a_row(some: list[list[int]], span: int):
    spans = list(packed(arrays(some), span))
    flat = list(chain.from_iterable(some))
    assert [i for ids, _ in spans for i in ids] == flat[: len(flat) // span * span]
    assert all(length == span == len(ids) for ids, length in spans)


@given(DOCUMENTS, st.integers(2, 9), st.integers(0, 5))
def test_one_span_of_each_document(some: list[list[int]], span: int, seed: int):
    """A piece of the document, padded; it stays the same when other documents follow."""
    spans = list(one_each(arrays(some), span, PADDING, seed))
    kept = [ids for ids in some if len(ids) >= 2]
    assert len(spans) == len(kept)
    for document, (ids, length) in zip(kept, spans, strict=True):
        real, padding = ids[:length].tolist(), ids[length:].tolist()
        assert length == min(len(document), span) and padding == [PADDING] * (span - length)
        assert any(document[i : i + length] == real for i in range(len(document)))
    longer = list(one_each(arrays([*some, list(range(30))]), span, PADDING, seed))
    assert [ids.tolist() for ids, _ in longer[:-1]] == [ids.tolist() for ids, _ in spans]


def test_a_span_may_start_anywhere():
    starts = {int(ids[0]) for ids, _ in one_each([np.arange(10)] * 300, 4, PADDING, 1)}
    assert starts == set(range(7))


def test_a_span_is_a_models_input(tmp_path: Path):
    assert write_spans(tmp_path / "spans.arrow", [(np.array([5, 6, 7]), 3), (np.array([8, 9, 1]), 2)]) == 2
    spans = Spans(tmp_path / "spans.arrow", 10)
    assert spans.mean_length == 2.5
    assert {name: value.tolist() for name, value in spans[1].items()} == {
        "input_ids": [8, 9, 1],
        "attention_mask": [1, 1, 0],
        "labels": [8, 9, IGNORED],
        "text_keys": 1,
    }


def test_a_span_is_found_whichever_batch_it_is_in(tmp_path: Path):
    """Spans [0, 0] to [6, 6], in batches of one, three, none and three. What is not used is not read."""
    numbers, file = iter(range(7)), tmp_path / "spans.arrow"
    tables = (
        pa.table({"input_ids": [[next(numbers)] * 2 for _ in range(rows)], "length": [2] * rows}, schema=SPANS)
        for rows in (1, 3, 0, 3)
    )
    write_tables(file, tables, SPANS)
    assert [span["input_ids"].tolist() for span in Spans(file, 7)] == [[i, i] for i in range(7)]
    assert [int(span["text_keys"]) for span in Spans(file, 6, rows=5)] == list(range(5))


@pytest.mark.parametrize(
    "ids, length, told",
    [
        ([1, 7], 2, "has token 7, but the model has embeddings for 7: run `dvc repro`, or take its tokenizer"),
        ([1, -1], 2, "does not hold spans for this model: run `dvc repro` to make it"),
        ([1, 2], 3, "does not hold spans for this model: run `dvc repro` to make it"),
    ],
)
def test_a_span_that_the_model_cannot_read(ids: list[int], length: int, told: str, tmp_path: Path):
    """A token without embedding, a negative one, and a span longer than its row."""
    write_spans(tmp_path / "spans.arrow", [(np.array([1, 6]), 2), (np.array(ids), length)])
    spans = Spans(tmp_path / "spans.arrow", 7)
    assert len(spans[0]["input_ids"]) == 2
    with pytest.raises(UserError, match=f"spans.arrow {told}"):
        spans[1]


@pytest.mark.parametrize(
    "table, message",
    [
        (pa.table({"ids": [[1, 2]]}), "does not hold the columns input_ids: list<item: int32>, length: int32"),
        (pa.table({"input_ids": [[1, 2], None], "length": [2, 2]}, schema=SPANS), "does not hold the columns"),
        (pa.table({"input_ids": [], "length": []}, schema=SPANS), "has no spans"),
    ],
)
def test_a_file_that_holds_no_spans(table: pa.Table, message: str, tmp_path: Path):
    write_tables(tmp_path / "spans.arrow", [table], table.schema)
    with pytest.raises(UserError, match=message):
        Spans(tmp_path / "spans.arrow", 7)
