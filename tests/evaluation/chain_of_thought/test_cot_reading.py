"""Votes, read from what was written."""

import pytest

from pipeline.evaluation.chain_of_thought.reading import vote_in
from pipeline.evaluation.prompts import before_stop


@pytest.mark.parametrize(
    "written, vote",
    [
        (" 18.", "18"),
        (" $1,234.00 in all", "1234"),
        (": -7 or 8", "-7"),
        (" 3.50\n\nQ: 4", "3.5"),
        ("\n\n12", "12"),
        (" three", ""),
        ("", ""),
    ],
)
def test_numbers(written: str, vote: str):
    assert vote_in(written, []) == vote


@pytest.mark.parametrize(
    "written, vote",
    [
        (" (B)", "B"),
        (" B.", "B"),
        (" B", "B"),
        ("B", "B"),
        (": B, not (C)", "B"),
        (" (B) trees or (C)", "B"),
        (" B: trees", "B"),
        ("\n\nD", "D"),
        (" option E)", "E"),
        (" 'C'", "C"),
        # a letter of a word is no label
        (" Bears and (C)", "C"),
        (" the lab", ""),
        (" B2 D", "D"),
        (" _B_", ""),
        (" a B-side, C", "C"),
        (" vitamin-B (C)", "C"),
        (" B's or C", "C"),
        (" B- water", "B"),
        # its own case, and labels of the task only
        (" b", ""),
        (" F or G", ""),
        # A: the first word is the label, a later sentence's first word the article if a small word follows
        (" A", "A"),
        (" A because B is wrong", "A"),
        (" (A) lemur", "A"),
        (" trees. A lemur lives in (B)", "B"),
        (" trees.\nA lemur", ""),
        (" trees\nA lemur", ""),
        ("\nA because B is wrong", "A"),
        ("\nA", "A"),
        (" trees.\nA", "A"),
        (" trees. A. B", "A"),
        (" trees? A: B", "A"),
        (" it is A or B", "A"),
        (" trees. (A) lemur", "A"),
        ("", ""),
    ],
)
def test_labels(written: str, vote: str):
    assert vote_in(written, list("ABCDE")) == vote


def test_labels_are_any_text():
    assert vote_in(" 10 of 1", ["1", "10"]) == "10"
    assert vote_in(" yes+ (yes)", ["yes+", "no"]) == "yes+"
    assert vote_in(" x.y", ["."]) == ""


@pytest.mark.parametrize(
    "stop, kept",
    [([], "ab\nQ: c"), (["Q:"], "ab\n"), (["c", "b"], "a"), (["b", "c"], "a"), (["z"], "ab\nQ: c"), (["ab"], "")],
)
def test_a_stop_string_and_what_follows_is_left_out(stop: list[str], kept: str):
    assert before_stop("ab\nQ: c", stop) == kept
