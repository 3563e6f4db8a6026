"""Questions in tokens, kept on the disk: of a task of any size only a few bytes a question are in memory."""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from transformers import PreTrainedTokenizerBase

from pipeline.data.tasks.questions import Question
from pipeline.data.tasks.spec import NUMBER, Task
from pipeline.errors import UserError
from pipeline.evaluation.prompts import prompt_ids
from pipeline.resume import KeptRows


@dataclass(frozen=True)
class Encoded:
    """A question as token ids. ``legal``: for each answer token the ids that an answer could have there, its own too.

    An answer token that is not of a legal kind (a sign, a lone space) has none: it is given, not asked for.
    """

    index: int
    question: Question
    prompt_ids: list[int]
    answer_ids: list[int]
    legal: list[list[int]]

    def __len__(self) -> int:
        return len(self.prompt_ids) + len(self.answer_ids)


class Encodings(Sequence[Encoded]):
    """A task's questions in tokens, written to ``file`` (`pipeline.resume.KeptRows`) and read as they are used.

    ``order`` (n,): the questions from the shortest to the longest; ``places`` (n,): where each stands in it.
    Raises UserError where the tokenizer cannot tell answers apart.
    """

    def __init__(self, task: Task, questions: Iterable[Question], tokenizer: PreTrainedTokenizerBase, file: BinaryIO):
        self._numbers = number_tokens(tokenizer, task.legal) if task.kind == NUMBER else []
        self._rows, lengths = KeptRows(file), array("q")
        for index, question in enumerate(questions):
            encoded = encode(index, question, tokenizer, self._numbers)
            lengths.append(len(encoded))
            self._rows.extend([self._row(encoded)])
        self.longest = max(lengths)
        self.order = np.argsort(lengths, kind="stable")
        self.places = np.argsort(self.order)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Encoded:
        row = self._rows[index]
        legal = [self._numbers if ids is None else ids for ids in row["legal"]]
        return Encoded(**row | {"question": Question(**row["question"]), "legal": legal})

    def _row(self, encoded: Encoded) -> dict:
        """JSON values; None stands for all number tokens, which may be thousands."""
        legal = [None if ids is self._numbers else ids for ids in encoded.legal]
        return vars(encoded) | {"question": vars(encoded.question), "legal": legal}


def encode(index: int, question: Question, tokenizer: PreTrainedTokenizerBase, numbers: list[int]) -> Encoded:
    """The question in tokens; ``numbers`` are the tokens that a number may be made of (`number_tokens`)."""
    prompt, answer = _continued(tokenizer, question.prompt, question.answer)
    if not question.labels:
        known = set(numbers)
        legal = [numbers if token in known else [] for token in answer]
        if not any(legal):
            raise UserError(f"this tokenizer has no number token in the answer {question.answer!r}")
        return Encoded(index, question, prompt, answer, legal)
    ids = [_continued(tokenizer, question.prompt, label)[1] for label in question.labels]
    if len({tuple(label[:-1]) for label in ids}) > 1 or len({label[-1] for label in ids}) < len(ids):
        raise UserError(
            f"this tokenizer does not tell the choices {', '.join(question.labels)} apart by one token: "
            "a larger tokenize.vocabulary may"
        )
    return Encoded(index, question, prompt, answer, [[]] * (len(answer) - 1) + [[label[-1] for label in ids]])


def _continued(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> tuple[list[int], list[int]]:
    """The ids of the prompt and those that " answer" adds to it."""
    before, whole = prompt_ids(tokenizer, prompt), prompt_ids(tokenizer, f"{prompt} {answer}")
    if whole[: len(before)] != before:
        return before, tokenizer(f" {answer}", add_special_tokens=False)["input_ids"]
    return before, whole[len(before) :]


def number_tokens(tokenizer: PreTrainedTokenizerBase, legal: str) -> list[int]:
    """The ids of all tokens that are nothing but ``legal`` characters, with or without a space before them."""
    pieces = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    texts = [tokenizer.convert_tokens_to_string([piece]).strip() if piece else "" for piece in pieces]
    return [i for i, text in enumerate(texts) if text and set(text) <= set(legal)]
