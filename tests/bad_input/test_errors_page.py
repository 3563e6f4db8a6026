"""docs/errors.md is what the table of bad inputs gives: `python -m tests.bad_input` writes it."""

from collections import Counter

from tests.bad_input.cases import CASES
from tests.bad_input.page import PAGE, page


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text(encoding="utf-8") == page()


def test_no_row_is_there_twice():
    assert [
        row for row, count in Counter((case.wrong, case.stage, case.message) for case in CASES).items() if count > 1
    ] == []
    assert len(CASES) >= 60
