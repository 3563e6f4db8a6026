"""GSM8K and CommonsenseQA as questions with one right answer, zero-shot and direct (method.md, "Evaluation").

GSM8K: Cobbe et al. 2021, arXiv 2110.14168. CommonsenseQA: Talmor et al. 2019, arXiv 1811.00937.
"""

from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class Question:
    """A prompt and its answer: one of ``choices`` or, where there are none, a number."""

    prompt: str
    answer: str
    choices: tuple[str, ...] = ()


def gsm8k(row: dict) -> Question:
    """The answer is what follows ``####``, without the commas of large numbers."""
    working, mark, answer = row["answer"].rpartition("####")
    if not mark or not any(c.isdigit() for c in answer):
        raise UserError(f"a GSM8K answer has no '#### number': {row['answer'][:60]!r}")
    return Question(f"Q: {row['question']}\nA:", answer.strip().replace(",", ""))


def commonsense_qa(row: dict) -> Question:
    """The choices are lines ``(A) text`` between the question and ``A:``; the answer is a letter."""
    labels, texts = row["choices"]["label"], row["choices"]["text"]
    if len(labels) != len(texts):
        raise UserError(f"a CommonsenseQA question has {len(labels)} labels but {len(texts)} choices")
    if row["answerKey"] not in labels:
        raise UserError(f"a CommonsenseQA answerKey is {row['answerKey']!r}, which is not among {', '.join(labels)}")
    lines = "".join(f"\n({label}) {text}" for label, text in zip(labels, texts, strict=True))
    return Question(f"Q: {row['question']}{lines}\nA:", row["answerKey"], tuple(labels))


TASKS: dict[str, Callable[[dict], Question]] = {"gsm8k": gsm8k, "commonsense_qa": commonsense_qa}
