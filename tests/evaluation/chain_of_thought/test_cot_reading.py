"""Votes, read from what was written."""

import pytest

from pipeline.evaluation.chain_of_thought.samples import vote_in
from pipeline.evaluation.prompts import before_stop

NUMBERS = {" 18.": "18", " $1,234.00 in all": "1234", ": -7 or 8": "-7", " 3.50\n\nQ: 4": "3.5", "\n\n12": "12"}
LABELS = {  # by vote
    "A": [" A", " A because B is wrong", " (A) lemur", "\nA because B is wrong", "\nA", " trees.\nA", " trees. A. B"],
    "B": [" (B)", " B.", " B", "B", ": B, not (C)", " (B) trees or (C)", " B: trees", " trees. A lemur lives in (B)"],
    "C": [" 'C'", " Bears and (C)", " a B-side, C", " vitamin-B (C)", " B's or C"],
    "D": ["\n\nD", " B2 D"],
    "E": [" option E)"],
    "": [" the lab", " _B_", " b", " F or G", " trees.\nA lemur", " trees\nA lemur", ""],
}
LABELS["A"] += [" trees? A: B", " it is A or B", " trees. (A) lemur"]
LABELS["B"] += [" B- water"]


@pytest.mark.parametrize("written", [*NUMBERS, " three", ""])
def test_numbers(written: str):
    assert vote_in(written, []) == NUMBERS.get(written, "")


@pytest.mark.parametrize("vote, written", [(vote, written) for vote in LABELS for written in LABELS[vote]])
def test_labels_are_words_of_their_own_and_no_articles(vote: str, written: str):
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
