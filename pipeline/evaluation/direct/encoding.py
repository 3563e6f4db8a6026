"""Questions as token ids. They stay on the disk: however large the task, memory holds a few bytes a question."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks.questions import Question
from pipeline.data.tasks.spec import NUMBER, TEXT, Task
from pipeline.errors import UserError
from pipeline.models.prompts import prompt_ids
from pipeline.resume import KeptRows


@dataclass(frozen=True)
class EncodedQuestion:
    """A question as token ids. ``legal``: for each answer token, the ids from which the model chooses there.

    An answer token that is not of a legal kind (a sign, a lone space) has none: it is given to the model.
    ``choices``: the ids of each choice's text, where the task is of kind text.
    """

    index: int
    question: Question
    prompt_ids: list[int]
    answer_ids: list[int]
    legal: list[list[int]]
    choices: list[list[int]] = field(default_factory=list)

    @property
    def length(self) -> int:
        """The tokens of the prompt with the answer or, of kind text, with the longest choice."""
        return len(self.prompt_ids) + max(map(len, (self.answer_ids, *self.choices)))

    @property
    def first_asked(self) -> int:
        """The place of the first answer token that the model chooses; 0 of kind text, where it chooses none."""
        return next((place for place, legal in enumerate(self.legal) if legal), 0)

    @property
    def group(self) -> str:
        """The name of the question's group; where the task has no groups, each question is one."""
        return self.question.group or str(self.index)


class Encodings(Sequence[EncodedQuestion]):
    """A task's questions, kept in ``file``, of which one is read and encoded at a time.

    ``order`` (n,) lists the questions from the shortest to the longest; ``places`` (n,) says where each stands in it.
    Raises UserError if the tokenizer cannot tell answers apart.
    """

    def __init__(self, task: Task, questions: Iterable[Question], tokenizer: PreTrainedTokenizerBase, file: BinaryIO):
        self.task, self._tokenizer, self._rows = task, tokenizer, KeptRows(file)
        self._numbers = number_tokens(tokenizer, task.legal) if task.kind == NUMBER else []
        self._rows.extend(map(vars, questions))
        lengths = array("q", (q.length for q in self))
        self.longest = max(lengths)
        self.order = np.argsort(lengths, kind="stable")
        self.places = np.argsort(self.order)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> EncodedQuestion:
        question = Question(**self._rows[index])
        return encode(int(index), question, self._tokenizer, self._numbers, self.task.kind)


def encode(
    index: int, question: Question, tokenizer: PreTrainedTokenizerBase, numbers: list[int], kind: str
) -> EncodedQuestion:
    """Encode a question of this ``kind``; ``numbers``: the tokens of which a number may be made (`number_tokens`)."""
    prompt = prompt_ids(tokenizer, question.prompt)

    def added(answer: str) -> list[int]:
        """The ids that " answer" adds to the prompt."""
        whole = prompt_ids(tokenizer, f"{question.prompt} {answer}")
        if whole[: len(prompt)] == prompt:
            return whole[len(prompt) :]
        return tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]  # a token spans the end of the prompt

    answer = added(question.answer)
    if kind == TEXT:
        choices = list(map(added, question.labels))
        if len({tuple(ids) for ids in choices if ids}) < len(set(question.labels)):
            raise UserError(f"this tokenizer does not tell the choices {', '.join(question.labels)} apart")
        return EncodedQuestion(index, question, prompt, answer, [], choices)
    if question.labels:
        labels = [added(label) for label in question.labels]
        if len({tuple(label[:-1]) for label in labels}) > 1 or len({label[-1] for label in labels}) < len(labels):
            raise UserError(
                f"this tokenizer does not tell the choices {', '.join(question.labels)} apart by one token: "
                "a larger tokenize.vocabulary may"
            )
        legal = [[]] * (len(answer) - 1) + [[label[-1] for label in labels]]
    else:
        known = set(numbers)
        legal = [numbers if token in known else [] for token in answer]
        if not any(legal):
            raise UserError(f"this tokenizer has no number token in the answer {question.answer!r}")
    return EncodedQuestion(index, question, prompt, answer, legal)


def number_tokens(tokenizer: PreTrainedTokenizerBase, legal: str) -> list[int]:
    """The ids of all tokens that consist of ``legal`` characters only, with or without a space before them."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([piece]).strip() if piece else "" for piece in pieces]
    return [i for i, text in enumerate(texts) if text and set(text) <= set(legal)]
