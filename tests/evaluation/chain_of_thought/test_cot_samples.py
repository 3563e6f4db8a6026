"""The protocol equals one question, way and sample at a time, without cached keys; whatever the batch size."""

import pytest
from tokenizers.processors import TemplateProcessing

from pipeline.data.tasks import spec
from pipeline.data.tasks.questions import Question
from pipeline.errors import UserError
from pipeline.evaluation.chain_of_thought.samples import vote_in
from pipeline.evaluation.prompts import before_stop
from tests.evaluation.chain_of_thought.asking import HOW, TOKENIZERS, ask, choices, numbers, slow_samples, tiny_model
from tests.local_hub import word_tokenizer
from tests.thought.tiny import GPT2

WORDS = word_tokenizer()


def every(rows: list[dict], name: str) -> list[str]:
    return [value for row in rows for value in row[name]]


@pytest.mark.parametrize(
    "name, asked, options",
    [
        ("words", numbers(3), {"batch_size": 2}),
        ("words", choices(2), {"answer_tokens": 12, "thought_temperature": 1.0}),
        pytest.param("bytes", numbers(3), {"batch_size": 2}, marks=pytest.mark.slow),
        pytest.param("bytes", numbers(3), {"batch_size": 2, "thought_temperature": 1.0}, marks=pytest.mark.slow),
    ],
)
def test_samples_and_votes_equal_the_slow_protocol(tmp_path, name, asked, options):
    tokenizer = TOKENIZERS[name]()
    model = tiny_model(tokenizer).double()
    rows = ask(model, tokenizer, asked, tmp_path / "rows", **options)
    assert rows == slow_samples(model, tokenizer, asked, **options)
    votes = every(rows, "votes")
    assert sum(map(bool, votes)) > 3 and "" in votes and len(set(every(rows, "texts"))) > 5 * len(asked)
    by_way = [[row["texts"] for row in rows if row["way"] == way] for way in ("thought", "no_thought")]
    assert by_way[0] != by_way[1]  # the test can tell the ways apart


@pytest.mark.parametrize("method, ways", [("pause", {"thought", "no_thought"}), ("no_thought", {"no_thought"})])
def test_other_methods_equal_the_slow_protocol(tmp_path, method, ways):
    model = tiny_model(WORDS, method=method).double()
    slow = slow_samples(model, WORDS, numbers(2), samples=2)
    assert ask(model, WORDS, numbers(2), tmp_path / "rows", samples=2) == [row for row in slow if row["way"] in ways]


def test_an_end_token_that_a_tokenizer_adds_is_not_asked(tmp_path):
    """Some tokenizers end every text, as T5's does."""
    ending = word_tokenizer()
    ending._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    model = tiny_model(WORDS).double()
    with_end = ask(model, ending, numbers(3), tmp_path / "end", samples=2)
    assert with_end == ask(model, WORDS, numbers(3), tmp_path / "plain", samples=2)


def test_a_prompt_is_not_empty_and_needs_room_for_reasoning_answer_and_thought(tmp_path):
    """Learned positions end where they end; a broken character is longer in tokens than what it was sampled in."""
    tokenizer = TOKENIZERS["bytes"]()
    longest = max(len(tokenizer(q.reasoning_prompt)["input_ids"]) for q in numbers(3))
    needed = longest + 12 + len(tokenizer(HOW.answer_prompt)["input_ids"]) + 6 + 3 + 2
    enough, less = (tiny_model(tokenizer, GPT2 | {"n_positions": n}) for n in (needed, needed - 1))
    how = spec.ChainOfThought(prompt="{{ q }}", stop=[], answer_prompt=HOW.answer_prompt)
    rows = ask(enough, tokenizer, numbers(3), tmp_path / "rows", how=how)
    again = [len(tokenizer(text)["input_ids"]) for text in every(rows, "texts")]
    assert max(again) > 12 + 10, "nothing was left out"
    with pytest.raises(UserError, match=f"question of t .* need {needed} positions, .* has {needed - 1}"):
        ask(less, tokenizer, numbers(3), tmp_path / "rows")
    questions = [*numbers(2), Question("Q", "1", [], "")]
    with pytest.raises(UserError, match="task t, question 2: its chain-of-thought prompt is empty"):
        ask(enough, tokenizer, questions, tmp_path / "rows")


LABELS = {  # by vote
    "A": [" A", " (A) lemur", "\nA", " trees.\nA", " trees. A. B", " trees? A: B", " it is A or B"],
    "B": [" B.", "B", ": B, not (C)", " (B) trees or (C)", " B: trees", " trees. A lemur lives in (B)", " B- water"],
    "C": [" 'C'", " Bears and (C)", " a B-side, C", " vitamin-B (C)", " B's or C"],
    "D": ["\n\nD", " B2 D"],
    "E": [" option E)"],
    "": [" the lab", " _B_", " b", " F or G", " trees.\nA lemur", " trees\nA lemur", ""],
}


def test_labels_are_words_of_their_own_and_no_articles():
    for vote, texts in LABELS.items():
        assert {text: vote_in(text, list("ABCDE")) for text in texts} == dict.fromkeys(texts, vote)
    assert vote_in(" 10 of 1", ["1", "10"]) == "10"
    assert vote_in(" yes+ (yes)", ["yes+", "no"]) == "yes+"
    assert vote_in(" x.y", ["."]) == ""
    assert [vote_in(text, []) for text in (" is $1,234.50", " six", "-0.50 or 8")] == ["1234.5", "", "-0.5"]


def test_a_stop_string_and_what_follows_is_left_out():
    kept = {(): "ab\nQ: c", ("Q:",): "ab\n", ("c", "b"): "a", ("b", "c"): "a", ("z",): "ab\nQ: c", ("ab",): ""}
    assert {stop: before_stop("ab\nQ: c", stop) for stop in kept} == kept
