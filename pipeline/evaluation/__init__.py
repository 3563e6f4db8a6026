"""Does thinking help to answer? Each task's questions, with thoughts and without, on the same trained model."""

from itertools import islice
from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase

from pipeline.bootstrap import interval
from pipeline.errors import UserError
from pipeline.evaluation.direct import digit_tokens, encode, score
from pipeline.evaluation.tasks import TASKS
from pipeline.files import read_rows, write_json, write_table
from pipeline.loop import pick_device, read_tokenizer
from pipeline.params import Evaluate
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.trained import check_room, load_trained

WAYS = ("no_thought", "thought")


def write_evaluation(params: Evaluate, trained: Path, questions: Path, results: Path) -> None:
    """Evaluate the model in ``trained`` on each task of ``questions``; write metrics and a row a question."""
    model = load_trained(trained).to(pick_device(params.device))
    tokenizer = read_tokenizer(trained)
    tables = {task: predictions(params, model, tokenizer, task, questions / f"{task}.parquet") for task in TASKS}
    write_table(results / "predictions.parquet", pd.concat(tables.values(), ignore_index=True))
    write_json(results / "metrics.json", {task: summary(table, params) for task, table in tables.items()})


def predictions(
    params: Evaluate, model: QuietStarForCausalLM, tokenizer: PreTrainedTokenizerBase, task: str, path: Path
) -> pd.DataFrame:
    """One row a question: the right answer, its probability and the predicted answer, without and with thoughts."""
    digits = digit_tokens(tokenizer)
    asked = [TASKS[task](row) for row in islice(read_rows(path), params.questions)]
    if not asked:
        raise UserError(f"{path} has no questions")
    encoded = [encode(index, question, tokenizer, digits) for index, question in enumerate(asked)]
    longest = max(len(question.prompt_ids) + len(question.answer_ids) for question in encoded)
    check_room(model, longest + model.config.thought_tokens + 2, "a question")
    sampling = Sampling(params.thought_temperature, params.seed)
    rows = []
    for row in score(model, tokenizer, encoded, params.batch_size, sampling, name=task):
        question = asked[row["index"]]
        about = {"task": task, "index": row["index"], "prompt": question.prompt, "answer": question.answer}
        about["thought"] = row["thought_text"]
        about |= {f"prob_{way}": row[way].prob for way in WAYS}
        about |= {f"predicted_{way}": row[way].predicted for way in WAYS}
        about |= {f"correct_{way}": row[way].correct(question) for way in WAYS}
        rows.append(about)
    return pd.DataFrame(rows)


def summary(table: pd.DataFrame, params: Evaluate) -> dict:
    """Means without and with thoughts, and their difference with its paired bootstrap 95 % interval."""
    metrics: dict = {"n": len(table)}
    for way in WAYS:
        metrics[way] = {
            "prob": float(table[f"prob_{way}"].mean()),
            "accuracy": float(table[f"correct_{way}"].mean()),
        }
    accuracy = (table["correct_thought"].astype(float) - table["correct_no_thought"].astype(float)).to_numpy()
    prob = (table["prob_thought"] - table["prob_no_thought"]).to_numpy()
    low, high = interval(accuracy, None, params.bootstrap_samples, params.seed)
    prob_low, prob_high = interval(prob, None, params.bootstrap_samples, params.seed)
    metrics["difference"] = {
        "accuracy": float(accuracy.mean()),
        "ci_low": low,
        "ci_high": high,
        "prob": float(prob.mean()),
        "prob_ci_low": prob_low,
        "prob_ci_high": prob_high,
    }
    return metrics
