"""Direct, zero-shot evaluation: the answer a model gives, and the right answer's probability among legal tokens.

A thought does not change what later positions see. So it is enough to think at the answer's own positions: the figures
are exactly those of thoughts at every position.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from pipeline.data.tasks.questions import NUMBER_TEXT, number_in
from pipeline.data.tasks.spec import NUMBER, TEXT, Task
from pipeline.evaluation.direct.encoding import EncodedQuestion, Encodings
from pipeline.evaluation.donors import ANSWER, WRITTEN, ByPlace, Controls, ending_together
from pipeline.evaluation.names import CONTROLS, GATED, THOUGHT
from pipeline.evaluation.prompts import HELD_LOGITS, AskedModel, before_stop
from pipeline.evaluation.shared import in_turns
from pipeline.files import batches
from pipeline.models.trained import check_room
from pipeline.thought.head import ban, exact_dtype
from pipeline.training.processes import is_main

ANSWER_TOKENS = 12  # to write a number in; the paper allows as many for a number after a chain of thought
OWN, OWN_GATED = "own", "own_gated"  # the model's own thoughts in a row


def score(
    asked: AskedModel, questions: Encodings, name: str, done: int = 0, controls: Controls | None = None
) -> Iterator[list[dict]]:
    """Yield a list of rows for each batch, the shortest questions first, without the first ``done`` rows.

    A row has index and, for each way, predicted, correct, prob and thought (the text of the one before the first answer
    token that is asked). The model answers a choice with the likeliest label, a number with the first that greedy
    decoding writes, and a text as `_choose` says. The ways are the model's, `OWN` has the thoughts that it sampled and
    `OWN_GATED` those that its gate wanted; with ``controls`` the ways are those instead. A batch with some rows missing
    is computed as a whole, as rounding depends on the padding in a batch. Several processes take turns at batches and
    yield the same. Raises UserError if a question has no room in the model, or predictions are not finite.
    """
    needed = questions.longest + (ANSWER_TOKENS if questions.task.kind == NUMBER else 0)
    check_room(asked.model, needed + asked.model.config.thought_room, f"a question of {name}")
    total, size = len(questions), asked.batch_size
    starts = [start for start in range(0, total, size) if min(start + size, total) > done]

    def rows_from(start: int) -> list[dict]:
        batch = [questions[i] for i in questions.order[start : start + size]]
        return _score_batch(asked, batch, questions.task, controls)

    left = max(0, total - done)
    with tqdm(total=left, desc=name, unit=" questions", mininterval=2, disable=not is_main()) as progress:
        for start, rows in zip(starts, in_turns(rows_from, starts), strict=True):
            missing = rows[max(0, done - start) :]
            yield missing
            progress.update(len(missing))


def _score_batch(
    asked: AskedModel, batch: Sequence[EncodedQuestion], task: Task, controls: Controls | None
) -> list[dict]:
    rows: dict[int, dict] = {q.index: {"index": q.index} for q in batch}
    given = None if controls is None else {q.index: controls(q.index) for q in batch}
    for way in asked.direct_ways if given is None else CONTROLS:
        members = [q for q in batch if given is None or way in given[q.index]]
        if not members:
            continue
        here = given and [given[q.index][way] for q in members]
        answers = (_choose if task.kind == TEXT else _answers)(asked, members, task, way, here)
        for q, answer in zip(members, answers, strict=True):
            own = answer.pop(OWN)
            rows[q.index][way] = answer
            if way in (THOUGHT, GATED) and own:
                rows[q.index][OWN if way == THOUGHT else OWN_GATED] = own
    return list(rows.values())


def _answers(
    asked: AskedModel, batch: Sequence[EncodedQuestion], task: Task, way: str, given: list[ByPlace] | None
) -> list[dict]:
    """Each question's answer in one way, and in `OWN` the thoughts before it by place, where there are any."""
    texts, keys = [q.prompt_ids + q.answer_ids for q in batch], [q.index for q in batch]
    longest = max(len(q.answer_ids) for q in batch)
    here = given and [ending_together(some[ANSWER], longest) for some in given]
    logits, thoughts = asked.predict(texts, keys, range(-longest - 1, -1), way, here)
    if task.kind == NUMBER:
        written, before_written = _write(asked, batch, way, task.stop, given and [some[WRITTEN] for some in given])
    answers = []
    for i, (q, after) in enumerate(zip(batch, logits.cpu(), strict=True)):
        after, prob, own = after[-len(q.answer_ids) :], 1.0, {}
        # the product of the answer tokens' probabilities among the legal ones (paper, section 5)
        for step, (legal, right) in enumerate(zip(q.legal, q.answer_ids, strict=True)):
            if legal:
                prob *= after[step, legal].double().softmax(-1)[legal.index(right)].item()
        if task.kind == NUMBER:
            predicted = number_in(written[i]) or ""
        else:
            predicted = q.question.labels[int(after[-1, q.legal[-1]].argmax())]
        thought = ""
        if thoughts is not None:
            own[ANSWER] = thoughts[i][-len(q.answer_ids) :].tolist()
            thought = asked.tokenizer.decode([token for token in own[ANSWER][q.first_asked] if token >= 0])
            if task.kind == NUMBER:
                own[WRITTEN] = before_written[i]
        correct = predicted == q.question.answer
        answers.append({"predicted": predicted, "correct": correct, "prob": prob, "thought": thought, OWN: own})
    return answers


def _choose(
    asked: AskedModel, batch: Sequence[EncodedQuestion], task: Task, way: str, given: list[ByPlace] | None
) -> list[dict]:
    """As `_answers`, where the choices' texts are scored, with a thought before each token of each.

    predicted: the text with the largest sum of log-probabilities; correct_norm: whether the largest sum a byte (UTF-8)
    is the right one's; prob: the right one's share of the texts' probabilities.
    """
    answers = [{"predicted": "", "correct": False, "prob": 0.0, "thought": "", OWN: {}} for _ in batch]
    sums: list[list[float]] = [[] for _ in batch]
    options = [(i, choice) for i, q in enumerate(batch) for choice in range(len(q.choices))]
    longest = max(len(ids) for q in batch for ids in q.choices)
    for some in batches(options, max(1, HELD_LOGITS // (longest * asked.model.vocabulary))):
        wanted = [batch[i].choices[choice] for i, choice in some]
        texts = [batch[i].prompt_ids + ids for (i, _), ids in zip(some, wanted, strict=True)]
        count = max(map(len, wanted))
        here = given and [ending_together(given[i][_place(choice)], count) for i, choice in some]
        logits, thoughts = asked.predict(texts, [batch[i].index for i, _ in some], range(-count - 1, -1), way, here)
        for row, ((i, choice), ids) in enumerate(zip(some, wanted, strict=True)):
            log_probs = logits[row, -len(ids) :].to(exact_dtype(logits)).log_softmax(-1).cpu()
            sums[i].append(log_probs[range(len(ids)), ids].double().sum().item())
            if thoughts is not None:
                answers[i][OWN][_place(choice)] = thoughts[row][-len(ids) :].tolist()
    for q, scores, answer in zip(batch, sums, answers, strict=True):
        by_byte = [score / len(text.encode()) for score, text in zip(scores, q.question.labels, strict=True)]
        distinct = dict(zip(q.question.labels, scores, strict=True))  # two choices may have one text
        answer["predicted"] = q.question.labels[int(np.argmax(scores))]
        answer["correct"] = answer["predicted"] == q.question.answer
        answer["correct_norm"] = q.question.labels[int(np.argmax(by_byte))] == q.question.answer
        answer["prob"] = float(np.exp(distinct[q.question.answer] - np.logaddexp.reduce([*distinct.values()])))
        if answer[OWN]:
            answer["thought"] = asked.tokenizer.decode([token for token in answer[OWN][ANSWER][0] if token >= 0])
    return answers


def _place(choice: int) -> str:
    """The name of the thoughts before the tokens of a choice's text."""
    return ANSWER if choice == 0 else f"choice {choice + 1}"


def _write(
    asked: AskedModel, batch: Sequence[EncodedQuestion], way: str, stop: Sequence[str], given: list[np.ndarray] | None
) -> tuple[list[str], list[list]]:
    """What greedy decoding writes after each prompt, and the thoughts before its tokens, if there are any.

    It ends with a stop string, the end token or a number that is followed by something else. ``given`` thoughts stand
    before the first, second, ... token, and the last one before any further token.
    """
    new: list[list[int]] = [[] for _ in batch]
    thoughts: list[list] = [[] for _ in batch]
    texts, going = [""] * len(batch), list(range(len(batch)))
    for step in range(ANSWER_TOKENS):
        prompts, keys = [batch[i].prompt_ids + new[i] for i in going], [batch[i].index for i in going]
        here = given and [given[i][[min(step, len(given[i]) - 1)]] for i in going]
        logits, used = asked.predict(prompts, keys, [-1], way, here)
        tokens = ban(logits[:, 0], asked.model.config.banned).argmax(-1).tolist()
        left = []
        for row, (i, token) in enumerate(zip(going, tokens, strict=True)):
            if used is not None:
                thoughts[i] += used[row].tolist()
            if token == asked.tokenizer.eos_token_id:
                continue
            new[i].append(token)
            text = asked.text(batch[i].prompt_ids, new[i])
            texts[i] = before_stop(text, stop)
            if texts[i] == text and not has_whole_number(text):
                left.append(i)
        going = left
        if not going:
            break
    return texts, thoughts


def has_whole_number(text: str) -> bool:
    """Whether nothing that is written after ``text`` changes the first number in it."""
    found = NUMBER_TEXT.search(text)
    return found is not None and text[found.end() :] not in ("", ".")
