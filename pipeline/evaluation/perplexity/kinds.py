"""The text of each token within its text, and its kind, for any tokenizer."""

import unicodedata
from collections.abc import Iterator
from functools import cache

from transformers import PreTrainedTokenizerBase

KINDS = ("word start", "word middle", "digit", "punctuation", "space", "special")
START, MIDDLE, DIGIT, PUNCTUATION, SPACE, SPECIAL = KINDS
BROKEN = "\ufffd"  # what decoding gives for bytes that are no whole character
LONGEST_CHARACTER = 4  # bytes in UTF-8, so it has no more tokens than that


class TokenReader:
    """Reads tokens as they stand in a text, and remembers the texts of those that it has read."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._texts: dict[tuple[int, ...], str] = {}

    def text(self, *ids: int) -> str:
        """The text of these successive tokens in the middle of a text.

        A SentencePiece token decoded alone loses the space before it; decoded after itself it keeps it.
        """
        if ids not in self._texts:
            once, twice = self.decode([*ids]), self.decode([*ids, *ids])
            # if bytes at the end of one copy and the start of the other form a character, `once` is no prefix
            self._texts[ids] = twice[len(once) :] if twice.startswith(once) else once
        return self._texts[ids]

    def decode(self, ids: list[int]) -> str:
        """Decode tokens as a text of their own, without removing spaces."""
        return self._tokenizer.decode(ids, clean_up_tokenization_spaces=False)

    def kinds(self, ids: list[int]) -> list[str]:
        """The kind of each token of a text, one of `KINDS`.

        special: stands for no text (end, padding, unknown). A token with a letter is a word: its middle if the first
        letter stands right after another letter, else its start. Without a letter: digit if it has one, space if it has
        nothing else (line breaks too), otherwise punctuation, which is any other sign. Tokens that share the bytes of a
        character have its kind; bytes whose character is not whole in the text are punctuation.
        """
        kinds, in_word = [], False
        for some in self._characters(ids):
            kind, in_word = (SPECIAL, False) if some[0] in self._special else kind_of(self.text(*some), in_word)
            kinds += [kind] + [MIDDLE if kind == START else kind] * (len(some) - 1)
        return kinds

    def _characters(self, ids: list[int]) -> Iterator[tuple[int, ...]]:
        """The ids in order; those that only together form whole characters come together."""
        pending: list[int] = []  # tokens that end in a part of a character
        for token in ids:
            pending.append(token)
            start = next((i for i in range(len(pending)) if BROKEN not in self.text(*pending[i:])), None)
            if start is not None:
                yield from ((i,) for i in pending[:start])
                yield tuple(pending[start:])
                pending = []
            elif len(pending) == LONGEST_CHARACTER:
                yield (pending.pop(0),)
        yield from ((i,) for i in pending)


@cache
def kind_of(text: str, in_word: bool) -> tuple[str, bool]:
    """The kind of a token with this text, after a letter (``in_word``) or not, and whether a letter ends it."""
    word, number = None, False
    for character in text:
        category = unicodedata.category(character)[0]
        letter = category == "L" or (category == "M" and in_word)  # an accent belongs to the letter before it
        if letter and word is None:
            word = MIDDLE if in_word else START
        number |= category == "N"
        in_word = letter
    other = DIGIT if number else PUNCTUATION if text.strip() else SPACE
    return word or other, in_word
