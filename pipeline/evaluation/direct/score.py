"""Direct, zero-shot evaluation: the answer a model gives, and the right answer's probability among legal tokens.

A thought does not change what later positions see. So it is enough to think at the answer's own positions: the figures
are exactly those of thoughts at every position.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from tqdm import tqdm

from pipeline.data.tasks.questions import number_in
from pipeline.data.tasks.spec import NUMBER, Task
from pipeline.errors import UserError
from pipeline.evaluation.direct.encoding import EncodedQuestion, Encodings
from pipeline.evaluation.prompts import NOT_FINITE, AskedModel, left_padded
from pipeline.models.trained import check_room

ANSWER_TOKENS = 12  # to write a number in; the paper allows as many for a number after a chain of thought


def score(asked: AskedModel, questions: Encodings, name: str, done: int = 0) -> Iterator[list[dict]]:
    """Yield a list of rows for each batch, the shortest questions first, without the first ``done`` rows.

    A row has index, thought_text (the thought before the answer) and, for each way, predicted, correct and prob. The
    model answers a choice with the likeliest label and a number with the first that greedy decoding writes. A batch
    with some rows missing is computed as a whole, as rounding depends on the padding in a batch. Raises UserError if a
    question has no room in the model, or predictions are not finite.
    """
    needed = questions.longest + (ANSWER_TOKENS if questions.task.kind == NUMBER else 0)
    check_room(asked.model, needed + asked.thought_room, f"a question of {name}")
    with tqdm(total=len(questions), desc=name, unit=" questions", mininterval=2) as progress:
        for start in range(0, len(questions), asked.batch_size):
            batch = questions.order[start : start + asked.batch_size]
            if start + len(batch) > done:
                yield _score_batch(asked, [questions[i] for i in batch], questions.task)[max(0, done - start) :]
            progress.update(len(batch))


@torch.no_grad()
def _score_batch(asked: AskedModel, batch: Sequence[EncodedQuestion], task: Task) -> list[dict]:
    model, pad = asked.model, asked.tokenizer.pad_token_id
    ids, mask = left_padded([q.prompt_ids + q.answer_ids for q in batch], pad, model.device)
    longest = max(len(q.answer_ids) for q in batch)
    positions = torch.arange(ids.shape[1] - longest - 1, ids.shape[1] - 1, device=model.device)
    keys = torch.tensor([q.index for q in batch], device=model.device)
    output = model(ids, mask, positions=positions, sampling=asked.sampling, text_keys=keys)
    logits = {"thought": output.logits.cpu(), "no_thought": output.base_logits.cpu()}
    rows: list[dict] = [{"index": q.index, "thought_text": ""} for q in batch]
    if output.thoughts is not None:
        for row, q, ids in zip(rows, batch, output.thoughts.ids[:, 0].cpu(), strict=True):
            row["thought_text"] = asked.tokenizer.decode(ids[-len(q.answer_ids)])
    for way in asked.ways:
        if task.kind == NUMBER:
            prompts = [q.prompt_ids for q in batch]
            texts = asked.write(prompts, keys, way, task.stop, max_new_tokens=ANSWER_TOKENS)
        for i, (row, q) in enumerate(zip(rows, batch, strict=True)):
            own = logits[way][i, -len(q.answer_ids) :]
            if task.kind == NUMBER:
                predicted = number_in(texts[i]) or ""
            else:
                predicted = q.question.labels[int(own[-1, q.legal[-1]].argmax())]
            prob = 1.0  # the product of the answer tokens' probabilities among the legal ones (paper, section 5)
            for step, (legal, right) in enumerate(zip(q.legal, q.answer_ids, strict=True)):
                if legal:
                    prob *= own[step, legal].double().softmax(-1)[legal.index(right)].item()
            if not math.isfinite(prob):
                raise UserError(NOT_FINITE)
            row[way] = {"predicted": predicted, "correct": predicted == q.question.answer, "prob": prob}
    return rows
