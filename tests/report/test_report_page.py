"""The page: its numbers, its figures, escaping, and that it needs nothing but itself."""

import json
import re
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_outputs import (
    GROUPS,
    HOSTILE,
    PARAMS,
    STEPS,
    TOKENS,
    base_model_steps,
    figures,
    predictions,
    reasoning,
    task,
    tokens,
    train,
    train_heldout,
    votes,
)
from report_page import Page, flat, written

from pipeline.report import ReportInputs, write_report


def test_sections_in_the_order_of_the_questions(page: Page):
    assert page.ids("section") == ["trained", "helped", "where", "certainty", "training", "setting"]
    contents = re.search(r"<nav.*?</nav>", page.html, flags=re.DOTALL)[0]
    assert re.findall(r'href="#(\w+)"', contents) == page.ids("section")


def test_what_was_trained(page: Page):
    assert "|method|Quiet-STaR|base model|qwen3 of 4 layers, from scratch|" in page.flat
    assert "|parameters|1,234,567|text|micro-world, seed 1|tokens of text read|983,040|" in page.flat
    assert "|held-out loss with thoughts, nats|1.510 → 1.100|" in page.flat
    assert "|thoughts that hold the right working|40.0% → 95.0%|" in page.flat
    assert "A language model of 1.2 million parameters read 983,040 tokens of text. It learned to write" in page.text


def test_a_base_model_and_a_text_from_the_hub(inputs: ReportInputs, tmp_path: Path):
    changed = PARAMS.read_text().replace("source: microworld", "source: hub").replace("source: scratch", "source: hub")
    inputs.params.write_text(re.sub(r"(path|revision): null", r"\1: some/\1", changed))
    text = written(inputs, tmp_path / "out").flat
    assert "|base model|some/path at some/revision|" in text and "|text|openai/gsm8k, main, train|" in text


def test_the_runs_own_numbers(page: Page):
    text = page.flat
    assert "|gsm8k|accuracy|9.5%|10.0%|90.0%|+80.0 [+77.0, +83.0]|p = 0.023|1,400|" in text
    assert "|gsm8k|probability of the right answer|11.0%|12.5%|75.0%|+62.5 [+60.0, +65.0]|1,400|" in text
    assert "|commonsense_qa|accuracy|9.5%|10.0%|11.0%|+1.0 [−2.0, +4.0]|" in text
    assert "|loss, nats per token|1.234|1.000|+0.234 [+0.200, +0.270]|" in text
    assert "|perplexity|3.437|2.718|" in text
    assert "120 texts, 12,340 tokens" in text


@pytest.mark.parametrize(
    "numbers, opening, change",
    [
        ((0.02, 0.001, 0.04), "Thinking helps", "12.0% with, +2.0 points (95% interval +0.1 to +4.0; p"),
        ((-0.02, -0.04, -0.001), "Thinking hurts", "8.0% with, −2.0 points (95% interval −4.0 to −0.1; p"),
        ((0.02, 0.0, 0.04), "Undecided", "12.0% with, +2.0 points (95% interval 0.0 to +4.0, which includes zero; p"),
        ((-0.02, -0.04, 0), "Undecided", "8.0% with, −2.0 points (95% interval −4.0 to 0.0, which includes zero; p"),
    ],
)
def test_verdict_follows_the_interval(
    inputs: ReportInputs, tmp_path: Path, undrawn, numbers: tuple, opening: str, change: str
):
    inputs.evaluate_metrics.write_text(json.dumps({"gsm8k": task(*numbers), "commonsense_qa": task(0, 0, 0)}))
    text = written(inputs, tmp_path / "out").text
    assert f"{opening} on gsm8k: accuracy is 10.0% without thoughts and {change}" in text


def test_ways_of_training_compared(page: Page):
    text = page.flat
    assert "|gsm8k|base model|+40.0 [+30.0, +50.0]|700.5 : 140|p &lt; 0.001|1,400|1|" in text
    assert f"|gsm8k|other {escaped(HOSTILE)}|+1.0 [−2.0, +4.0]|20 : 6|p = 0.250|1,400|3|" in text
    assert "|gsm8k|base model|+30.0 [+20.0, +40.0]|1,400|1|" in text, "of probability: no test"
    assert "|gsm8k|accuracy|Quiet-STaR, thoughts off|50.0% [40.0%, 62.5%]|1,400|2|" in text
    sentence = (
        "On gsm8k, Quiet-STaR has a higher accuracy than the base model (+40.0 [+30.0, +50.0] points); it cannot be "
    )
    assert f"{sentence}told apart from other {HOSTILE} (+1.0 [−2.0, +4.0] points)." in page.text


def escaped(text: str) -> str:
    """As the flattened page has it: tags in a text are no tags."""
    found = {"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"}
    return "".join(found.get(character, character) for character in text)


def test_nothing_was_compared(inputs: ReportInputs, tmp_path: Path, undrawn):
    figures().head(0).to_csv(inputs.compare_figures, index=False)
    pd.read_csv(inputs.compare_comparisons).head(0).to_csv(inputs.compare_comparisons, index=False)
    page = written(inputs, tmp_path / "out")
    assert "No other ways of training were compared with this run." in page.text
    assert "accuracy" not in page.ids("figure")


def test_chain_of_thought(page: Page):
    assert "|gsm8k|maj@8|50.0%|70.0%|+20.0 [+5.0, +35.0]|32|8|" in page.flat
    finding = "Thinking helps on gsm8k with written reasoning: maj@8 is 50.0% without thoughts and 70.0% with"
    assert f"{finding}, +20.0 points (95% interval +5.0 to +35.0; p = 0.016; 32 questions)." in page.text
    assert "This run has no chain-of-thought figures for commonsense_qa." in page.text
    drawn = votes().query("task == 'gsm8k'").reset_index(drop=True)
    pd.testing.assert_frame_equal(
        page.csv("votes-1-gsm8k").astype(drawn.dtypes), drawn[list(page.csv("votes-1-gsm8k"))]
    )


def test_no_chain_of_thought(inputs: ReportInputs, tmp_path: Path, undrawn):
    inputs.cot_metrics.write_text("{}")
    inputs.cot_votes.write_text("\n")
    page = written(inputs, tmp_path / "out")
    assert "This run has no chain-of-thought figures: none of its tasks" in page.text
    assert "|maj@" not in page.flat and not [name for name in page.ids("figure") if name.startswith("votes")]


def test_every_figure_offers_its_numbers(page: Page):
    figures = page.ids("figure")
    training = ["heldout-losses", "working-share", "losses", "mixing-weight", "reward", "positive-advantages"]
    training += ["thought-entropy", "objective", "base-model"]
    assert figures == ["accuracy", "votes-1-gsm8k", *GROUPS, "density", *training]
    assert sum(tag == "svg" for tag, _ in page.elements) == len(figures)
    assert all(len(page.csv(name)) for name in figures)
    pd.testing.assert_frame_equal(
        page.csv("working-share"), train_heldout()[["step", "working_share"]].astype({"step": float})
    )
    assert page.csv("reward")["reward"].tolist() == pytest.approx(0.01 * np.arange(1, 61) + 0.1 * np.sin(range(1, 61)))
    assert page.csv("deciles")["improvement"].tolist() == pytest.approx([0.05 * i - 0.03 for i in range(10)])
    assert page.csv("accuracy")["arm"].tolist() == figures_arms()
    assert len(page.csv("objective")) == STEPS


def figures_arms() -> list[str]:
    table = figures()
    return table[table["measure"] == "accuracy"]["arm"].tolist()


def test_a_label_is_text_and_no_formula(page: Page):
    """A figure's words come from data: NA is a kind of token, and a dollar sign starts no mathematics."""
    drawing = re.search(r'<figure id="kinds">.*?</figure>', page.html, flags=re.DOTALL)[0]
    assert ">NA</text>" in drawing and ">$x_1$</text>" in drawing and "&lt;script&gt;" in drawing
    assert page.csv("kinds")["group"].tolist() == GROUPS["kinds"][::-1], "the largest improvement first"
    arms = re.search(r'<figure id="accuracy">.*?</figure>', page.html, flags=re.DOTALL)[0]
    assert ">Quiet-STaR, thoughts off</text>" in arms


def test_figures_follow_the_colour_scheme(page: Page):
    """No colour of the drawings' own: ink, series and grid all come from the page."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))
    assert all(colour in drawings for colour in ("currentColor", "var(--thought)", "var(--plain)", "var(--quiet)"))
    assert re.findall(r"(?:fill|stroke|color): *#\w+", drawings) == []


def test_figures_without_numbers_are_left_out(inputs: ReportInputs, tmp_path: Path):
    base_model_steps().head(0).to_csv(inputs.base_model_steps, index=False)
    train_heldout().assign(working_share=None).to_csv(inputs.train_heldout, index=False)
    inputs.train_metrics.write_text(json.dumps(train() | {"working_share": None}))
    page = written(inputs, tmp_path / "out")
    assert "heldout-losses" in page.ids("figure") and not {"base-model", "working-share"} & set(page.ids("figure"))
    assert "right working" not in page.text


def test_where_thoughts_helped(page: Page):
    assert "|tokens helped by more than 0.01 nats|20.0% [18.0%, 22.0%]|" in page.flat
    assert "|tokens hurt by more than that|10.0% [9.0%, 11.0%]|" in page.flat
    together = "the larger the mixing weight, the larger the improvement: Spearman’s ρ 0.31 [0.25, 0.37]."
    assert f"Of the tokens whose loss changed by more than 0.01 nats: {together}" in page.text
    largest = "Largest improvement: positions 4–7, +0.070 [+0.050, +0.090] nats."
    assert f"{largest} Smallest: positions 1, −0.030 [−0.050, −0.010] nats." in page.text
    assert "|−0.5 to 0.1|−0.030 [−0.050, −0.010]|0.300|12.5%|6.2%|1,234|50.0%|" in page.flat


def test_density_is_a_mark_a_cell(page: Page):
    drawing = re.search(r'<figure id="density">.*?</figure>', page.html, flags=re.DOTALL)[0]
    gains, losses = (
        re.findall(rf"fill: var\(--{name}\)(?:; opacity: ([\d.]+))?", drawing) for name in ("thought", "plain")
    )
    assert len(gains) == 3 and len(losses) == 1
    assert [float(found or 1) for found in gains] == sorted((float(found or 1) for found in gains), reverse=True)
    assert "|1 to 4,000 tokens a cell|" in page.flat


def test_extremes_are_the_first_ranks_once(page: Page):
    gains = re.search(r"Tokens that gained most</h4>.*?</ol>", page.html, flags=re.DOTALL)[0]
    assert re.findall(r"thought gain (\d)", gains) == ["2", "3", "4", "5", "6"]
    assert flat(gains).startswith("Tokens that gained most|+2.750 nats |of 3.000|…")
    assert '<b class="help"> NA</b>' in gains
    lost = re.search(r"Passages that lost most</h4>.*?</ol>", page.html, flags=re.DOTALL)[0]
    assert "|passage loss 2⏎ &lt;script&gt;" in flat(lost) and "|−2.750 nats per token |" in flat(lost)
    assert len(page.csv("extremes")) == 32


def test_examples_are_the_extremes_and_the_median(page: Page):
    for name in ("gsm8k", "commonsense_qa"):
        for chosen, index, probability in (("largest", 5, "85.0%"), ("median", 3, "65.0%"), ("smallest", 0, "35.0%")):
            card = re.search(rf'{name} <span class="unit">{chosen}.*?</article>', page.html, flags=re.DOTALL)[0]
            assert f"Question {index} of {name}?" in card and f"thought {index} of {name}" in card
            verdict = "A, right" if index > 2 else "—, wrong"
            assert "|before training|—, wrong|25.0%|without thoughts|—, wrong|" in flat(card)
            assert f"|with thoughts|{verdict}|{probability}|" in flat(card)


def test_one_question_is_shown_once(inputs: ReportInputs, tmp_path: Path, undrawn):
    predictions().query("task == 'gsm8k' and index == 0").to_parquet(inputs.predictions)
    assert written(inputs, tmp_path / "out").html.count("<article") == 1


def test_heat_map_shows_the_first_passages_in_reading_order(page: Page):
    assert len(page.cells) == 2 * 6 * len(TOKENS)
    assert [cell["data-token"] for cell in page.cells[:4]] == ["Q", ":", " The", " lemur"]
    assert "in text 0" in page.cells[0]["data-thought"] and "in text 1" in page.cells[-1]["data-thought"]


def test_a_passage_is_one_tab_stop(page: Page):
    assert [cell["tabindex"] for cell in page.cells] == (["0"] + ["-1"] * (6 * len(TOKENS) - 1)) * 2


def test_cells_tell_both_losses_and_are_coloured_by_their_difference(page: Page):
    table = tokens().sort_values(["text", "position"]).head(len(page.cells))
    improvement = table["nll_no_thought"] - table["nll_thought"]
    for cell, better, row in zip(page.cells, improvement, table.itertuples(), strict=True):
        assert cell["class"] == ("t help" if better >= 0 else "t hurt")
        assert cell["data-without"].replace("−", "-") == f"{row.nll_no_thought:.3f}"
        assert cell["data-with-thought"].replace("−", "-") == f"{row.nll_thought:.3f}"
        assert float(cell["data-improvement"].replace("−", "-")) == pytest.approx(better, abs=6e-4)
        assert cell["data-weight"] == "0.250"
        assert ("data-clearest" in cell) == (better == improvement[table["text"] == row.text].max())


def test_full_colour_from_the_95th_percentile_of_all_tokens_on(page: Page):
    size = (tokens()["nll_no_thought"] - tokens()["nll_thought"]).abs().sort_index()
    full = size.quantile(0.95)
    strengths = [float(cell["style"].removeprefix("--s:")) for cell in page.cells]
    assert strengths == pytest.approx((size / full).clip(upper=1).head(len(strengths)).tolist(), abs=0.0051)
    assert f"helped, {full:.2f} nats or more" in page.text


def test_thoughts_that_change_nothing_have_no_colour(inputs: ReportInputs, tmp_path: Path, undrawn):
    tokens().assign(nll_thought=tokens()["nll_no_thought"]).to_parquet(inputs.tokens)
    assert {cell["style"] for cell in written(inputs, tmp_path / "out").cells} == {"--s:0.00"}


def test_whitespace_tokens_show_and_break_the_line(page: Page):
    shown = [cell["data-token"] for cell in page.cells]
    assert shown[4:8] == ["⏎\n", "⏎\n⏎\n", "⇥", "␣␣"]
    assert ">⏎\n</span>" in page.html
    assert ".passage { white-space: pre-wrap" in page.html


def test_how_sure(page: Page):
    assert "1,400 questions of gsm8k; 1,400 questions of commonsense_qa; 120 held-out texts" in page.text
    assert "1 to 4 seeds for each way of training, 1,400 questions for each task." in page.text
    assert "Those of the ways of training cover the choice of seed as well" in page.text
    bars = sum(map(len, GROUPS.values()))
    assert "|ways of training against each other|8|thoughts on against off: accuracy and probability" in page.flat
    assert f"|improvement by group of held-out tokens|{bars}|" in page.flat
    total = 8 + 4 + 3 + 1 + bars
    assert f"In all {total} differences with an interval." in page.text
    assert f"one in twenty of them, about {total / 20:.0f}, would" in page.text


def test_one_seed_is_no_evidence_on_seeds(inputs: ReportInputs, tmp_path: Path, undrawn):
    figures().assign(seeds=1).to_csv(inputs.compare_figures, index=False)
    text = written(inputs, tmp_path / "out").text
    assert "1 seed for each way of training" in text and "They do not cover the choice of seed." in text


def test_corpus_text_is_escaped(page: Page):
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert "<script>alert" not in page.html and "<b>\n" not in page.html
    assert page.cells[8]["data-token"] == HOSTILE
    assert page.cells[0]["data-thought"] == f"a primate lives in text 0 {HOSTILE}⏎\n"
    assert f"Q: Question 5 of gsm8k? {HOSTILE}\n(A) trees" in page.text
    assert f"thought 5 of gsm8k {HOSTILE}" in page.text


def test_task_names_are_escaped(inputs: ReportInputs, tmp_path: Path):
    inputs.evaluate_metrics.write_text(json.dumps({HOSTILE: task(0.1, 0, 1)}))
    inputs.cot_metrics.write_text(json.dumps({HOSTILE: reasoning()}))
    votes().replace("gsm8k", HOSTILE).to_csv(inputs.cot_votes, index=False)
    figures().replace("gsm8k", HOSTILE).to_csv(inputs.compare_figures, index=False)
    page = written(inputs, tmp_path / "out")
    assert "<script>alert" not in page.html
    assert HOSTILE in [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]


def test_parameters_verbatim_and_versions(page: Page):
    assert f"# <b>\n{PARAMS.read_text().partition('plan:')[0].rstrip()}" in page.text
    for package in ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas"):
        assert f"|{package}|{version(package)}|" in page.flat


def test_same_inputs_same_bytes(inputs: ReportInputs, tmp_path: Path):
    moved = {}
    for name, value in vars(inputs).items():
        if isinstance(value, Path):
            moved[name] = tmp_path / "elsewhere" / value.name
            moved[name].parent.mkdir(exist_ok=True)
            moved[name].write_bytes(value.read_bytes())
    write_report(inputs, tmp_path / "first")
    write_report(replace(inputs, **moved), tmp_path / "second" / "deep")
    first = (tmp_path / "first" / "index.html").read_bytes()
    assert first == (tmp_path / "second" / "deep" / "index.html").read_bytes()
    assert str(tmp_path).encode() not in first


def test_needs_nothing_from_outside(page: Page):
    names = ("src", "href", "srcset", "action", "xlink:href")
    links = [attributes[name] for _, attributes in page.elements for name in names if name in attributes]
    assert links and [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import|https?://", page.html) == []
    assert "default-src 'none'" in page.html


def test_ids_are_unique_and_links_resolve(page: Page):
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    inner = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page.html)
    assert inner and {first or second for first, second in inner} <= set(ids)


def test_every_skip_link_comes_before_what_it_skips(page: Page):
    skips = [a["href"].removeprefix("#") for tag, a in page.elements if tag == "a" and a.get("class") == "skip"]
    assert skips == ["trained", "certainty"]
    assert (
        page.html.index('href="#certainty">Skip')
        < page.html.index('id="token-map"')
        < page.html.index('id="certainty"')
    )


def test_a_line_does_not_break_inside_a_figure(inputs: ReportInputs, tmp_path: Path, undrawn):
    write_report(inputs, tmp_path / "out")
    html = (tmp_path / "out/index.html").read_text(encoding="utf-8")
    assert "[+77.0,\N{NO-BREAK SPACE}+83.0]" in html and "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.023" in html


def test_the_parameters_are_on_the_page_but_not_the_plans(page: Page):
    """No stage depends on the section `plan`, so no output may."""
    assert "policy_weight: 100.0" in page.text and "device_memory" not in page.text
