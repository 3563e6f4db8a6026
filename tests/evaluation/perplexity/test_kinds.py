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
    found = []
    for index, (start, end) in enumerate(spans):
        if index and spans[index - 1][1] > start:  # the next byte of a character
            found.append({START: MIDDLE}.get(found[-1], found[-1]))
            continue
        letters = [at for at in range(start, end) if is_letter(text, at)]
        if letters:
            found.append(MIDDLE if letters[0] and is_letter(text, letters[0] - 1) else START)
        elif any(unicodedata.category(c)[0] == "N" for c in text[start:end]):
            found.append(DIGIT)
        else:
            found.append(SPACE if text[start:end].isspace() else PUNCTUATION)
    return found


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


def kinds(codes: str) -> list[str]:
    """Word start, word middle, digit, punctuation, space and special as single letters."""
    return [dict(zip("wmdp_s", KINDS, strict=True))[code] for code in codes]


BY_HAND = [
    ("metaspace", "▁What ▁ \n ▁the ing - ing s ▁12 42 x </s> y <unk> z", "w__wmpwmddwswsw"),
    ("byte fallback", "▁the ing ▁ 7 a <0xC3> <0xA9> a <0x0A> <0xC3> <0xA9> ing <0x2E> a", "wm_dwmmm_wmmpw"),
]


@pytest.mark.parametrize("name, tokens, codes", BY_HAND)
def test_kinds_by_hand(name: str, tokens: str, codes: str):
    ids = TOKENIZERS[name].convert_tokens_to_ids(tokens.split(" "))
    assert None not in ids and TokenReader(TOKENIZERS[name]).kinds(ids) == kinds(codes)


# text, after a letter, its kind, whether a letter ends it
SEVERAL = [("x2", False, "w", False), ("x2", True, "m", False), ("2nd", True, "w", True), ("a b", True, "m", True)]
SEVERAL += [(" a.", True, "w", False), ("%5", True, "d", False), ("½", False, "d", False), (" .\n", True, "p", False)]
SEVERAL += [("\t \r\n", True, "_", False), ("", True, "_", True), ("\u0301", True, "m", True)]
SEVERAL += [("\u0301", False, "p", False)]


@pytest.mark.parametrize("text, in_word, code, ends_in_word", SEVERAL)
def test_tokens_of_several_things(text: str, in_word: bool, code: str, ends_in_word: bool):
    assert kind_of(text, in_word) == (*kinds(code), ends_in_word)


CUT = [("é", 0, "wm"), ("語", 0, "wmm"), ("🎉", 0, "pppp"), ("²", 0, "dd"), ("\u3000", 0, "___")]
CUT += [("🎉é", 1, "pppwm"), ("éé", 1, "pwm")]  # texts that start within a character
CUT += [("語語", -1, "wmmpp")]  # one that ends within
CUT += [("e\u0301é", 0, "wmmmm"), ("❤\ufe0f", 0, "pppppp")]  # an accent goes on with its word, another mark does not
CUT += [("\ufffda", 0, "pppw")]


@pytest.mark.parametrize("text, cut, codes", CUT)
def test_bytes_are_of_their_characters_kind(text: str, cut: int, codes: str):
    for tokenizer, ids in ((BYTE_FALLBACK, byte_ids(text.encode())), (BYTE_LEVEL, BYTE_LEVEL.encode(text))):
        assert len(ids) == len(text.encode())
        assert TokenReader(tokenizer).kinds(ids[:cut] if cut < 0 else ids[cut:]) == kinds(codes)


def test_a_token_with_the_end_of_a_character_and_a_letter():
    """Merges of a byte-level tokenizer may join the last byte of one character and what follows it."""
    vocabulary = {"Ã": 0, "©x": 1, "©Ã": 2, "©": 3, "Ġ": 4}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.decoder = decoders.ByteLevel()
    reader = TokenReader(PreTrainedTokenizerFast(tokenizer_object=tokenizer))
    assert reader.kinds([4, 0, 1, 4, 0, 2, 3]) == kinds("_wm_wmm")
    assert reader.kinds([0, 2, 2, 2, 2, 2, 3]) == reader.kinds([0, 2, 2, 2, 2, 2, 3])  # never whole, never stuck


@given(st.data(), st.sampled_from(list(TOKENIZERS)))
def test_any_tokens_have_kinds(data: st.DataObject, name: str):
    tokenizer = TOKENIZERS[name]
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=40))
    reader = TokenReader(tokenizer)
    found = reader.kinds(ids)
    assert len(found) == len(ids) and set(found) <= set(KINDS)
    assert [k == SPECIAL for k in found] == [i in tokenizer.all_special_ids for i in ids]
    assert found == TokenReader(tokenizer).kinds(ids)  # what was read before changes nothing
    assert all(isinstance(reader.text(i), str) for i in ids)
