"""The first number in a text, written so that equal numbers are equal strings."""

from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.tasks.questions import number_in

FIRST = {
    " 42 apples": "42",
    "$1,450,000.": "1450000",
    "5, 6": "5",
    "12.": "12",
    ".5": "0.5",
    "-.50": "-0.5",
    "000": "0",
    "-0.0": "0",
    "10-5": "10",
    "3/4": "3",
    "<<3+4=7>>": "3",
    "1.2.3": "1.2",
    "x2": "2",
    "": None,
    "-.,": None,
    "- 5": "5",
    "٣ or 4": "4",
}


def test_the_first_number():
    assert {text: number_in(text) for text in FIRST} == FIRST


def formatted(number: Decimal, commas: bool, zeros: int, lead: int) -> str:
    """The same number with thousands' commas, zeros after it and zeros before it."""
    sign, text = ("-" if number < 0 else ""), format(abs(number), ",f" if commas else "f")
    if zeros:
        text += ("" if "." in text else ".") + "0" * zeros
    return sign + "0" * lead + text


NUMBERS = st.decimals(-(10**12), 10**12, allow_nan=False, places=None).map(lambda d: round(d, 4))


@given(NUMBERS, st.booleans(), st.integers(0, 3), st.integers(0, 2), st.sampled_from(["", " ", "It is $", "A: ", "= "]))
def test_however_it_is_written_a_number_is_itself(number: Decimal, commas: bool, zeros: int, lead: int, before: str):
    read = number_in(f"{before}{formatted(number, commas, zeros, lead)} and 7 more")
    assert Decimal(read) == number
    assert read == number_in(str(read)) == number_in(format(number, "f"))


@given(st.text() | st.text("0٣५².,- x"))  # digits of other scripts make no number, as numbers are compared as strings
def test_a_text_has_a_number_where_it_has_a_digit(text: str):
    read = number_in(text)
    assert (read is not None) == any(c in "0123456789" for c in text)
    assert read is None or set(read) <= set("-.0123456789")
