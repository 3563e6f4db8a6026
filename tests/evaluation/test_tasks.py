"""The questions of both tasks, and what is made of a table of answers."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.evaluation import summary
from pipeline.evaluation.tasks import Question, commonsense_qa, gsm8k
from pipeline.params import Evaluate
from tests.local_hub import commonsense_qa_rows

SHARED = Path(__file__).parent.parent.parent.parent / "shared/hub"


@pytest.mark.parametrize(
    "answer, number",
    [
        ("3 + 4 = <<3+4=7>>7\n#### 7", "7"),
        ("#### 1,234,567", "1234567"),
        ("####-5 ", "-5"),
        ("A #### 3 in the text\n#### 4", "4"),
        ("#### 10.5", "10.5"),
    ],
)
def test_the_number_after_the_mark(answer: str, number: str):
    assert gsm8k({"question": "Why?", "answer": answer}) == Question("Q: Why?\nA:", number)


@pytest.mark.parametrize("answer", ["7", "", "####", "#### none", "## 7"])
def test_no_number_after_a_mark(answer: str):
    with pytest.raises(UserError, match="####"):
        gsm8k({"question": "Why?", "answer": answer})


def test_choices_are_lines():
    question = commonsense_qa(commonsense_qa_rows(2)[1])
    assert question.prompt == "Q: Where is number 1?\n(A) trees\n(B) water\n(C) ponds\n(D) cliffs\n(E) wood\nA:"
    assert (question.answer, question.choices) == ("B", tuple("ABCDE"))


@pytest.mark.parametrize("changes", [{"answerKey": ""}, {"answerKey": "F"}, {"choices": {"label": ["A"], "text": []}}])
def test_a_malformed_question(changes: dict):
    with pytest.raises(UserError, match="CommonsenseQA"):
        commonsense_qa(commonsense_qa_rows(1)[0] | changes)


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no real data at {SHARED}")
def test_every_real_question_is_read():
    numbers = pd.concat(map(pd.read_parquet, sorted((SHARED / "openai/gsm8k/main").glob("*.parquet"))))
    answers = [gsm8k(row).answer for row in numbers.to_dict("records")]
    assert len(answers) == 7473 + 1319
    assert all(float(answer) is not None and "," not in answer for answer in answers)
    choices = pd.read_parquet(SHARED / "tau/commonsense_qa/data/validation-00000-of-00001.parquet")
    questions = [commonsense_qa(row) for row in choices.to_dict("records")]
    assert len(questions) == 1221 and all(q.choices == tuple("ABCDE") for q in questions)


def test_the_summary_pairs_the_questions():
    """Two questions won and one lost of eight: one more right in all."""
    table = pd.DataFrame(
        {
            "prob_no_thought": [0.1] * 8,
            "prob_thought": [0.3] * 8,
            "correct_no_thought": [True, False, False, True, True, False, False, False],
            "correct_thought": [False, True, True, True, True, False, False, False],
        }
    )
    params = Evaluate(seed=1, batch_size=1, thought_temperature=0.0, bootstrap_samples=2000, device="cpu")
    metrics = summary(table, params)
    assert metrics["n"] == 8
    assert metrics["no_thought"] == {"prob": pytest.approx(0.1), "accuracy": 3 / 8}
    assert metrics["thought"] == {"prob": pytest.approx(0.3), "accuracy": 4 / 8}
    difference = metrics["difference"]
    assert difference["accuracy"] == pytest.approx(1 / 8)
    assert difference["ci_low"] < 0 < difference["ci_high"]
    # the same gain at every question: paired, there is nothing uncertain about it
    assert difference["prob_ci_low"] == pytest.approx(0.2) == difference["prob_ci_high"]
