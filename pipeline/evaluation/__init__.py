"""Does thinking help to answer? Each task's questions, with thoughts and without, and by the model before training."""

from pathlib import Path

import pandas as pd

from pipeline.evaluation.direct import Asked, Scored, encode_all, score
from pipeline.files import write_json, write_table
from pipeline.inputs import pick_device, read_tokenizer
from pipeline.params import Evaluate
from pipeline.statistics import interval, mcnemar
from pipeline.tasks import Question, Task, read_tasks
from pipeline.thought.sampler import Sampling
from pipeline.trained import load_plain, load_trained

WAYS = ("base", "no_thought", "thought")


def write_evaluation(params: Evaluate, trained: Path, base: Path | None, tasks: Path, results: Path) -> None:
    """Ask the model in ``trained``, and the one in ``base`` from which it was trained, every question of ``tasks``.

    Writes a row a question and way (predictions.parquet), and the means with their intervals (metrics.json).
    """
    tokenizer, device = read_tokenizer(trained), pick_device(params.device)
    sampling = Sampling(params.thought_temperature, params.seed)
    asked = {"": Asked(load_trained(trained).to(device), tokenizer, sampling, params.batch_size)}
    if base is not None:
        asked["base"] = Asked(load_plain(base).to(device), tokenizer, sampling, params.batch_size)
    tables = [
        _predictions(one, task, questions[: params.questions], name, model)
        for name, (task, questions) in read_tasks(tasks).items()
        for model, one in asked.items()
    ]
    predictions = pd.concat(tables, ignore_index=True)
    write_table(results / "predictions.parquet", predictions)
    write_json(
        results / "metrics.json",
        {str(task): summary(rows, params) for task, rows in predictions.groupby("task", sort=False)},
    )


def _predictions(asked: Asked, task: Task, questions: list[Question], name: str, model: str) -> pd.DataFrame:
    """A row a question and way; the only way of another ``model`` than the trained one has that model's name."""
    rows = []
    for row in score(asked, encode_all(task, questions, asked.tokenizer), task, f"{name} {model}".strip()):
        question = questions[row["index"]]
        about = {"task": name, "index": row["index"], "prompt": question.prompt, "answer": question.answer}
        for way in asked.ways:
            thought = row["thought_text"] if way == "thought" else ""
            rows.append({**about, "way": model or way, **_answer(row[way], question), "thought": thought})
    return pd.DataFrame(rows)


def _answer(scored: Scored, question: Question) -> dict:
    right = scored.predicted == question.answer
    return {"predicted": scored.predicted, "correct": right, "prob": scored.prob}


def summary(predictions: pd.DataFrame, params: Evaluate) -> dict:
    """A task's means by way; of thought minus no thought the intervals, and McNemar's p-value of the accuracy."""
    by_way = {way: predictions[predictions["way"] == way].sort_values("index") for way in WAYS}
    metrics: dict = {"n": int(predictions["index"].nunique())}
    for way, rows in by_way.items():
        if len(rows):
            metrics[way] = {"prob": float(rows["prob"].mean()), "accuracy": float(rows["correct"].mean())}
    if "thought" in metrics:
        metrics["difference"] = _difference(by_way["thought"], by_way["no_thought"], params)
    return metrics


def _difference(thought: pd.DataFrame, without: pd.DataFrame, params: Evaluate) -> dict:
    right, right_without = thought["correct"].to_numpy(bool), without["correct"].to_numpy(bool)
    accuracy = right.astype(float) - right_without
    prob = thought["prob"].to_numpy() - without["prob"].to_numpy()
    low, high = interval(accuracy, None, params.bootstrap_samples, params.seed)
    prob_low, prob_high = interval(prob, None, params.bootstrap_samples, params.seed)
    return {
        "accuracy": float(accuracy.mean()),
        "ci_low": low,
        "ci_high": high,
        "p_value": mcnemar(right, right_without),
        "prob": float(prob.mean()),
        "prob_ci_low": prob_low,
        "prob_ci_high": prob_high,
    }
