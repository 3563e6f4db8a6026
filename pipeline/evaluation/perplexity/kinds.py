"""What a token says in its text, and of which kind it is, for any tokenizer."""

import unicodedata
from collections.abc import Iterator
from functools import cache

from transformers import PreTrainedTokenizerBase

START, MIDDLE, DIGIT, PUNCTUATION, SPACE, SPECIAL = KINDS = (
    "word start",
    "word middle",
    "digit",
    "punctuation",
    "space",
    "special",
)
BROKEN = "\ufffd"  # what decoding puts for bytes that are no whole character
LONGEST_CHARACTER = 4  # bytes in UTF-8, so tokens at most


class TokenReader:
    """Reads the tokens of a text as they stand in it; what it has read once it keeps."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._texts: dict[tuple[int, ...], str] = {}

    def text(self, *ids: int) -> str:
        """What these successive tokens say in the middle of a text.

        Alone, a SentencePiece token is decoded without the space before it; after itself it keeps it.
        """
        if ids not in self._texts:
            once, twice = self.decode([*ids]), self.decode([*ids, *ids])
            # where bytes at the end of one copy and the start of the other join to a character there is no prefix
            self._texts[ids] = twice[len(once) :] if twice.startswith(once) else once
        return self._texts[ids]

    def decode(self, ids: list[int]) -> str:
        """The tokens as a text of its own, with every space that they say."""
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def kinds(self, ids: list[int]) -> list[str]:
        """The kind of each token of a text, one of `KINDS`.

        special: one that stands for no text (end, padding, unknown). A token with a letter is a word: its start unless
        its first letter stands right after another. One without is a digit where it has one, space where it is nothing
        else (line breaks too), and otherwise punctuation, which is any other sign. Tokens that share the bytes of a
        character are of its kind; bytes whose character the text does not hold whole are punctuation.
        """
        kinds: list[str] = []
        in_word = False
        for some in self._characters(ids):
            kind, in_word = (SPECIAL, False) if some[0] in self._special else kind_of(self.text(*some), in_word)
            kinds += [kind] + [MIDDLE if kind == START else kind] * (len(some) - 1)
        return kinds

    def _characters(self, ids: list[int]) -> Iterator[tuple[int, ...]]:
        """The ids, those together whose bytes only together are whole characters."""
        open_ids: list[int] = []
        for token in ids:
            open_ids.append(token)
            starts = (i for i in range(len(open_ids)) if BROKEN not in self.text(*open_ids[i:]))
            start = next(starts, None)
            if start is not None:
                yield from ((i,) for i in open_ids[:start])
                yield tuple(open_ids[start:])
                open_ids = []
            elif len(open_ids) == LONGEST_CHARACTER:
                yield (open_ids.pop(0),)
        yield from ((i,) for i in open_ids)


@cache
def kind_of(text: str, in_word: bool) -> tuple[str, bool]:
    """The kind of a token that says ``text``, right after a letter (``in_word``) or not; and if a letter ends it."""
    word, number = None, False
    for character in text:
        category = unicodedata.category(character)[0]
        letter = category == "L" or (category == "M" and in_word)  # an accent is a part of the letter before it
        if letter and word is None:
            word = MIDDLE if in_word else START
        number |= category == "N"
        in_word = letter
    other = DIGIT if number else PUNCTUATION if text.strip() else SPACE
    return word or other, in_word
