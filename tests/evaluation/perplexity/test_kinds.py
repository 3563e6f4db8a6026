"""What a token says in its text, and of which kind it is."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from pipeline.evaluation.perplexity.kinds import KINDS, TokenReader, kind_of
from tests.evaluation.perplexity.made_up import BYTE_FALLBACK, BYTE_LEVEL, METASPACE, byte_ids

START, MIDDLE, DIGIT, PUNCTUATION, SPACE, SPECIAL = KINDS
TOKENIZERS = {"byte-level": BYTE_LEVEL, "metaspace": METASPACE, "byte fallback": BYTE_FALLBACK}
ASCII = st.text("abtxT 09.,(')\n -", min_size=1, max_size=30)
ANY = st.text("abT 07.'\n\téß日語ह\u093f²🎉…e\u0301", max_size=30)


def slow_kinds(text: str, spans: list[tuple[int, int]]) -> list[str]:
    """The kinds of the tokens at ``spans`` of ``text``, from the characters alone."""
    kinds = []
    for index, (start, end) in enumerate(spans):
        if index and spans[index - 1][1] > start:  # the next byte of a character
            kinds.append({START: MIDDLE}.get(kinds[-1], kinds[-1]))
            continue
        letters = [at for at in range(start, end) if is_letter(text, at)]
        if letters:
            kinds.append(MIDDLE if letters[0] and is_letter(text, letters[0] - 1) else START)
        elif any(unicodedata.category(c)[0] == "N" for c in text[start:end]):
            kinds.append(DIGIT)
        else:
            kinds.append(SPACE if text[start:end].isspace() else PUNCTUATION)
    return kinds


def is_letter(text: str, at: int) -> bool:
    """Whether a letter is there, or an accent on one."""
    while at and unicodedata.category(text[at])[0] == "M":
        at -= 1
    return unicodedata.category(text[at])[0] == "L"


@given(ANY, ASCII)
def test_kinds_are_those_of_the_characters(some: str, ascii_only: str):
    # without a space at the start, a metaspace tokenizer adds its own
    for tokenizer, text in ((BYTE_LEVEL, some), (METASPACE, f" {ascii_only}")):
        encoded = tokenizer(text, return_offsets_mapping=True)
        assert TokenReader(tokenizer).kinds(encoded["input_ids"]) == slow_kinds(text, encoded["offset_mapping"])


@given(ASCII, st.sampled_from(["byte-level", "metaspace"]))
def test_a_token_says_what_it_adds_to_the_text_before_it(text: str, name: str):
    tokenizer, reader = TOKENIZERS[name], TokenReader(TOKENIZERS[name])
    ids = tokenizer(text)["input_ids"]
    upto = [tokenizer.decode(ids[:n]) for n in range(len(ids) + 1)]
    assert [reader.text(i) for i in ids[1:]] == [b[len(a) :] for a, b in zip(upto[1:-1], upto[2:], strict=True)]
    assert "".join(map(reader.text, ids)) in (text, f" {text}")


CASES = {
    "metaspace": (
        ["▁What", "▁", "\n", "▁the", "ing", "-", "ing", "s", "▁12", "42", "x", "</s>", "y", "<unk>", "z"],
        [START, SPACE, SPACE, START, MIDDLE, PUNCTUATION, START, MIDDLE, DIGIT, DIGIT, START, SPECIAL, START, SPECIAL]
        + [START],
    ),
    "byte fallback": (
        ["▁the", "ing", "▁", "7", "a", "<0xC3>", "<0xA9>", "a", "<0x0A>", "<0xC3>", "<0xA9>", "ing", "<0x2E>", "a"],
        [START, MIDDLE, SPACE, DIGIT, START, MIDDLE, MIDDLE, MIDDLE, SPACE, START, MIDDLE, MIDDLE, PUNCTUATION, START],
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_kinds_by_hand(name: str):
    tokens, kinds = CASES[name]
    ids = TOKENIZERS[name].convert_tokens_to_ids(tokens)
    assert None not in ids and TokenReader(TOKENIZERS[name]).kinds(ids) == kinds


# text, after a letter, its kind, whether a letter ends it
SEVERAL = [("x2", False, START, False), ("x2", True, MIDDLE, False), ("2nd", True, START, True)]
SEVERAL += [("a b", True, MIDDLE, True), (" a.", True, START, False), ("%5", True, DIGIT, False)]
SEVERAL += [("½", False, DIGIT, False), (" .\n", True, PUNCTUATION, False), ("\t \r\n", True, SPACE, False)]
SEVERAL += [("", True, SPACE, True), ("\u0301", True, MIDDLE, True), ("\u0301", False, PUNCTUATION, False)]


@pytest.mark.parametrize("text, in_word, kind, ends_in_word", SEVERAL)
def test_tokens_of_several_things(text: str, in_word: bool, kind: str, ends_in_word: bool):
    assert kind_of(text, in_word) == (kind, ends_in_word)


CUT = [
    ("é", 0, [START, MIDDLE]),
    ("語", 0, [START, MIDDLE, MIDDLE]),
    ("🎉", 0, [PUNCTUATION] * 4),
    ("²", 0, [DIGIT] * 2),
    ("\u3000", 0, [SPACE] * 3),
    ("🎉é", 1, [PUNCTUATION] * 3 + [START, MIDDLE]),  # a text that starts within a character
    ("éé", 1, [PUNCTUATION, START, MIDDLE]),
    ("語語", -1, [START, MIDDLE, MIDDLE, PUNCTUATION, PUNCTUATION]),  # one that ends within
    ("e\u0301é", 0, [START, MIDDLE, MIDDLE, MIDDLE, MIDDLE]),  # an accent goes on with its word
    ("❤\ufe0f", 0, [PUNCTUATION] * 6),  # a mark that is no accent
    ("\ufffda", 0, [PUNCTUATION] * 3 + [START]),
]


@pytest.mark.parametrize("text, cut, kinds", CUT)
def test_bytes_are_of_their_characters_kind(text: str, cut: int, kinds: list[str]):
    for tokenizer, ids in ((BYTE_FALLBACK, byte_ids(text.encode())), (BYTE_LEVEL, BYTE_LEVEL.encode(text))):
        assert len(ids) == len(text.encode())
        assert TokenReader(tokenizer).kinds(ids[:cut] if cut < 0 else ids[cut:]) == kinds


def test_a_token_with_the_end_of_a_character_and_a_letter():
    """Merges of a byte-level tokenizer may join the last byte of one character and what follows it."""
    vocabulary = {"Ã": 0, "©x": 1, "©Ã": 2, "©": 3, "Ġ": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    reader = TokenReader(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert reader.kinds([4, 0, 1, 4, 0, 2, 3]) == [SPACE, START, MIDDLE, SPACE, START, MIDDLE, MIDDLE]
    assert reader.kinds([0, 2, 2, 2, 2, 2, 3]) == reader.kinds([0, 2, 2, 2, 2, 2, 3])  # never whole, never stuck


@given(st.data(), st.sampled_from(list(TOKENIZERS)))
def test_any_tokens_have_kinds(data: st.DataObject, name: str):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    reader = TokenReader(tokenizer)
    kinds = reader.kinds(ids)
    assert len(kinds) == len(ids) and set(kinds) <= set(KINDS)
    assert [k == SPECIAL for k in kinds] == [i in tokenizer.all_special_ids for i in ids]
    assert kinds == TokenReader(tokenizer).kinds(ids)  # what was read before changes nothing
    assert all(isinstance(reader.text(i), str) for i in ids)
