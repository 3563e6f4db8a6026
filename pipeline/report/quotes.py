"""The texts that the page quotes, chosen by rules and not by hand: questions, extremes, and the token heat map."""

import pandas as pd

from pipeline.report.method import Method

SIDES = ("gain", "loss", "content")
EXTREMES = 5  # shown of each kind and side
EXCERPT = 220  # characters of an extreme's text
CLEAREST = 0.95  # the quantile of the improvement's size that gets the full colour: outliers would fade the rest
CONTROLS = {code: chr(0x2400 + code) for code in range(32)} | {ord("\t"): "⇥", ord("\n"): "⏎\n", 0x7F: "␡"}


def visible(text: str, breaks: bool = True) -> str:
    """``text`` with signs for line breaks, other control characters, and spaces alone.

    A line breaks after its sign or, without ``breaks``, goes on.
    """
    if not text.strip(" "):
        return "␣" * len(text)
    shown = text.translate(CONTROLS)
    return shown if breaks else shown.replace("\n", " ")


def examples(predictions: pd.DataFrame, method: Method) -> list[dict]:
    """For each task, the questions whose right answer gained most, the median and least probability.

    ``predictions``: a row for each question and way of answering. An example has the run's own thought.
    """
    found = []
    for task, rows in predictions.groupby("task", sort=False):
        probability = rows.pivot(index="index", columns="way", values="prob")
        ranked = (probability["thought"] - probability["no_thought"]).sort_values(ascending=False, kind="stable").index
        places = {0: "largest gain", (len(ranked) - 1) // 2: "median change", len(ranked) - 1: "smallest gain"}
        for place, chosen in sorted(places.items()):
            answers = rows[rows["index"] == ranked[place]].set_index("way").to_dict("index")
            named = {name: answers[way] for way, name in method.ways.items() if way in answers}
            shown = answers["thought"]
            prompt, thought = shown["prompt"].replace("\r", ""), visible(shown["thought"]).strip(" ")
            example = {"task": task, "chosen": chosen, "prompt": prompt, "thought": thought, "answer": shown["answer"]}
            found.append(example | {"answers": named})
    return found


def extremes(table: pd.DataFrame, what: str, side: str) -> list[dict]:
    """The passages or thoughts (``what``) with the largest gain, loss or content effect (``side``), largest first.

    Of a passage the start is shown; of the text before a thought, the end.
    """
    rows = table[(table["what"] == what) & (table["side"] == side)].sort_values("rank", kind="stable")
    rows = rows.drop_duplicates(["excerpt", "thought", "token"])  # texts that begin alike share their first thoughts
    found = rows.head(EXTREMES).to_dict("records")
    for row in found:
        row.update({name: visible(row[name], breaks=False) for name in ("excerpt", "thought", "token")})
        row["thought"] = row["thought"].strip(" ")
        text = row["excerpt"]
        if len(text) > EXCERPT:
            row["excerpt"] = f"{text[:EXCERPT]}…" if what == "passage" else f"…{text[-EXCERPT:]}"
    return found


def heat_map(tokens: pd.DataFrame, passages: int) -> dict:
    """The tokens of the first ``passages`` texts, coloured by what the thought before each of them changed.

    ``full_colour`` is the improvement, in nats, that gets the full colour, one scale for all texts; ``strength`` is a
    token's share of it. ``clearest`` marks the largest improvement of a passage.
    """
    tokens = tokens.sort_values(["text", "position"], kind="stable", ignore_index=True)
    improvement = tokens["nll_no_thought"] - tokens["nll_thought"]
    full = improvement.abs().quantile(CLEAREST) or 1.0
    tokens = tokens.assign(
        improvement=improvement,
        strength=(improvement.abs() / full).clip(upper=1),
        clearest=improvement.groupby(tokens["text"]).transform("idxmax") == tokens.index,
    )
    shown = [tokens[tokens["text"] == text] for text in tokens["text"].unique()[:passages]]
    return {"full_colour": f"{full:.2f}", "passages": [rows.to_dict("records") for rows in shown]}
