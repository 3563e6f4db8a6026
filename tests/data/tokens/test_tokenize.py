"""The tokenize stage: the tokenizer that is trained on the corpus, token ids of texts, and the files of spans."""

from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from pipeline.data.tokens.tokenize import TEXT, encoded, read_texts, write_tokens
from pipeline.data.tokens.tokenizer import END, PAD, train_tokenizer
from pipeline.files import arrow_table, digests, write_rows
from pipeline.params import BaseModel, Scratch, Tokenize
from tests.local_hub import word_tokenizer
from tests.micro_documents import documents

SCRATCH = BaseModel(seed=1, source="scratch", scratch=Scratch())
TRICKY = "a  b\t c \n\n d . , ! don't x\r\ny «É» ﬁ 🎉\u200d \x00 A .B 's n't  "


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(documents("pretrain", 300), 400)


@given(st.text())
@example(TRICKY)
def test_no_text_is_lost_or_tidied(tokenizer: PreTrainedTokenizerFast, text: str):
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(st.text("0123456789", min_size=1), st.sampled_from(["", " ", "a", "\n", "("]))
def test_a_digit_is_a_token(tokenizer: PreTrainedTokenizerFast, digits: str, before: str):
    pieces = [tokenizer.decode(i) for i in tokenizer(before + digits)["input_ids"]]
    assert all(sum(c.isdigit() for c in piece) <= 1 for piece in pieces)
    assert [piece.strip(" ") for piece in pieces if piece.strip(" ").isdigit()] == list(digits)


@pytest.mark.parametrize("vocabulary", [258, 5000])
def test_the_vocabulary_is_not_exceeded(vocabulary: int):
    trained = train_tokenizer(documents("pretrain", 200), vocabulary)
    assert len(trained) <= vocabulary
    assert len({trained.pad_token_id, trained.eos_token_id, *trained.get_vocab().values()}) == len(trained)
    assert (trained.pad_token, trained.eos_token) == (PAD, END)


def test_a_document_ends_with_one_end_token(tokenizer: PreTrainedTokenizerFast):
    for one in (tokenizer, word_tokenizer()):
        for ids in map(list, encoded(["What is it?", f"it is{one.eos_token}", ""], one)):
            assert ids[-1] == one.eos_token_id and ids.count(one.eos_token_id) == 1


def test_a_documents_ids_are_those_of_its_text_alone(tmp_path: Path):
    """Texts of several batches, also where the tokenizer's file asks for truncation and padding."""
    texts, tokenizer = list(documents("pretrain", 2500)), train_tokenizer(["It is 3."], 300)
    expected = [tokenizer(text)["input_ids"] + [tokenizer.eos_token_id] for text in texts]
    tokenizer.backend_tokenizer.enable_truncation(5)
    tokenizer.backend_tokenizer.enable_padding(length=99)
    write_rows(tmp_path / "texts.arrow", ({"text": text} for text in texts), TEXT)
    assert [ids.tolist() for ids in encoded(read_texts(tmp_path / "texts.arrow"), tokenizer)] == expected


def written(folder: Path, **values: object) -> Path:
    for split in ("pretrain", "train", "heldout"):
        texts = ({"text": text} for text in documents(split, 40))
        write_rows(folder / f"texts/{split}.arrow", texts, TEXT)
    settings = {"seed": 1, "vocabulary": 400, "pretrain_span": 16, "span": 12, "packed": False} | values
    write_tokens(Tokenize(**settings), SCRATCH, folder / "texts", folder / "tokens")
    return folder / "tokens"


@pytest.mark.parametrize("is_packed", [True, False])
def test_written_spans_decode_to_the_documents(is_packed: bool, tmp_path: Path):
    """The same texts make the same bytes."""
    folder, other = written(tmp_path / "one", packed=is_packed), written(tmp_path / "other", packed=is_packed)
    assert len(digests(folder)) == 5 and digests(folder) == digests(other)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder / "tokenizer")
    rows = arrow_table(folder / "train.arrow").to_pandas()
    whole = END.join([*documents("train", 40), ""])
    assert (rows["input_ids"].map(len) == 12).all()
    assert (len(rows) == 40) != is_packed  # a span a document, or more of them
    assert all(tokenizer.decode(ids[:n]) in whole for ids, n in zip(rows["input_ids"], rows["length"], strict=True))
    pretrain = arrow_table(folder / "pretrain.arrow").to_pandas()
    assert (pretrain["input_ids"].map(len) == 16).all() and (pretrain["length"] == 16).all()
