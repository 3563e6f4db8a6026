"""Spans of token ids, and the tokenizer that is trained on the corpus."""

from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pipeline.data.corpus.build import TEXT
from pipeline.data.corpus.microworld import documents
from pipeline.data.tokens.documents import encoded, read
from pipeline.data.tokens.packing import one_each, packed
from pipeline.data.tokens.tokenize import write_tokens
from pipeline.data.tokens.tokenizer import END, PAD, train_tokenizer
from pipeline.files import arrow_table, write_rows
from pipeline.params import BaseModel, Scratch, Tokenize
from tests.local_hub import word_tokenizer

PADDING = -7
DOCUMENTS = st.lists(st.lists(st.integers(0, 50), max_size=12), max_size=12)
SCRATCH = BaseModel(seed=1, source="scratch", scratch=Scratch())


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(documents("pretrain", 300, 1, 2, 0.5), 400)


@given(st.text())
def test_no_text_is_lost(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@pytest.mark.parametrize("text", ["a  b\t c \n\n d . , ! don't", "x\r\ny", "  ", "«É» ﬁ 🎉\u200d \x00", "A .B 's n't"])
def test_no_mark_or_space_is_tidied(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.text("0123456789", min_size=1), st.sampled_from(["", " ", "a", "\n", "("]))
def test_a_digit_is_a_token(tokenizer: PreTrainedTokenizerFast, digits: str, before: str):
    pieces = [tokenizer.decode(i) for i in tokenizer(before + digits)["input_ids"]]
    assert all(sum(c.isdigit() for c in piece) <= 1 for piece in pieces)
    assert [piece.strip(" ") for piece in pieces if piece.strip(" ").isdigit()] == list(digits)


@pytest.mark.parametrize("vocabulary", [258, 300, 5000])
def test_the_vocabulary_is_not_exceeded(vocabulary: int):
    trained = train_tokenizer(documents("pretrain", 200, 1, 2, 0.5), vocabulary)
    assert len(trained) <= vocabulary
    assert len({trained.pad_token_id, trained.eos_token_id, *trained.get_vocab().values()}) == len(trained)
    assert (trained.pad_token, trained.eos_token) == (PAD, END)


def ids_of(texts: list[str], tokenizer: PreTrainedTokenizerFast, folder: Path) -> list[list[int]]:
    write_rows(folder / "texts.arrow", ({"text": text} for text in texts), TEXT)
    found = encoded(read(folder / "texts.arrow"), tokenizer)
    return [ids.tolist() for ids in found]


def test_a_document_ends_with_one_end_token(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    for one in (tokenizer, word_tokenizer()):
        (tmp_path / str(id(one))).mkdir()
        for ids in ids_of(["What is it?", f"it is{one.eos_token}", ""], one, tmp_path / str(id(one))):
            assert ids[-1] == one.eos_token_id and ids.count(one.eos_token_id) == 1


def test_a_documents_ids_are_those_of_its_text_alone(tokenizer: PreTrainedTokenizerFast, tmp_path: Path):
    """More than a batch of them, also where the tokenizer's file asks for cutting and padding."""
    texts = list(documents("pretrain", 2500, 1, 2, 0.5))
    expected = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    assert ids_of(texts, tokenizer, tmp_path) == expected


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
    spans = list(one_each(arrays(some), span, PADDING, seed))
    kept = [ids for ids in some if len(ids) >= 2]
    assert len(spans) == len(kept)
    for document, (ids, length) in zip(kept, spans, strict=True):
        real, padding = ids[:length].tolist(), ids[length:].tolist()
        assert length == min(len(document), span) and padding == [PADDING] * (span - length)
        assert any(document[i : i + length] == real for i in range(len(document)))


@given(DOCUMENTS, st.integers(2, 9))
def test_a_span_depends_on_its_document_alone(some: list[list[int]], span: int):
    longer = list(one_each(arrays([*some, list(range(30))]), span, PADDING, 1))
    spans = list(one_each(arrays(some), span, PADDING, 1))
    assert [ids.tolist() for ids, _ in longer[:-1]] == [ids.tolist() for ids, _ in spans]


def test_a_span_may_start_anywhere():
    starts = {int(ids[0]) for ids, _ in one_each([np.arange(10)] * 300, 4, PADDING, 1)}
    assert starts == set(range(7))


def written(folder: Path, **values: object) -> Path:
    texts = folder / "texts"
    for split in ("pretrain", "train", "heldout"):
        write_rows(texts / f"{split}.arrow", ({"text": d} for d in documents(split, 40, 1, 2, 0.5)), TEXT)
    settings = {"seed": 1, "vocabulary": 400, "pretrain_span": 16, "span": 12, "packed": False} | values
    write_tokens(Tokenize(**settings), SCRATCH, texts, folder / "tokens")
    return folder / "tokens"


def test_the_same_texts_make_the_same_bytes(tmp_path: Path):
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    names = sorted(f.relative_to(one) for f in one.rglob("*") if f.is_file())
    assert len(names) == 5
    assert [name for name in names if (one / name).read_bytes() != (other / name).read_bytes()] == []


@pytest.mark.parametrize("is_packed", [True, False])
def test_written_spans_decode_to_the_documents(is_packed: bool, tmp_path: Path):
    folder = written(tmp_path, packed=is_packed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    rows = arrow_table(folder / "train.arrow").to_pandas()
    whole = END.join([*documents("train", 40, 1, 2, 0.5), ""])
    assert (rows["input_ids"].map(len) == 12).all()
    assert (len(rows) == 40) != is_packed  # a span a document, or more of them
    assert all(tokenizer.decode(ids[:n]) in whole for ids, n in zip(rows["input_ids"], rows["length"], strict=True))
    pretrain = arrow_table(folder / "pretrain.arrow").to_pandas()
    assert (pretrain["input_ids"].map(len) == 16).all() and (pretrain["length"] == 16).all()
