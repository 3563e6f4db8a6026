"""The page: its numbers, its verdicts, escaping, and that it needs nothing but itself."""

import io
import json
import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pandas as pd
import pytest
from fake_outputs import HOSTILE, STEPS, TOKENS, base_model_steps, predictions, task, tokens, train, train_heldout

from pipeline.report import ReportInputs, write_report


class Page(HTMLParser):
    """The page as a list of elements (tag, attributes) and their text, entities resolved."""

    def __init__(self, html: str):
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict]] = []
        self.texts: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def cells(self) -> list[dict]:
        return [attributes for _, attributes in self.elements if "data-thought" in attributes]

    def csv(self, name: str) -> pd.DataFrame:
        link = next(a["href"] for _, a in self.elements if a.get("download") == f"{name}.csv")
        return pd.read_csv(io.StringIO(unquote(link.split(",", 1)[1])))


def written(inputs: ReportInputs, out: Path) -> Page:
    write_report(inputs, out)
    return Page((out / "index.html").read_text(encoding="utf-8"))


@pytest.fixture
def page(inputs: ReportInputs, tmp_path: Path) -> Page:
    return written(inputs, tmp_path / "out")


def flat(html: str) -> str:
    """The text between the tags, a bar between any two of its pieces."""
    return re.sub(r"(<[^>]*>\s*)+", "|", html)


def test_headline_numbers(page: Page):
    text = flat(page.html)
    assert "|gsm8k|1,400|accuracy|10.0%|90.0%|+80.0 [+77.0, +83.0]|" in text
    assert "|probability of the right answer|12.5%|75.0%|+62.5 [+60.0, +65.0]|" in text
    assert "|commonsense_qa|1,400|accuracy|10.0%|11.0%|+1.0 [−2.0, +4.0]|" in text
    assert "|loss, nats per token|1.234|1.000|+0.234 [+0.200, +0.270]|" in text
    assert "|perplexity|3.437|2.718|" in text
    assert "120 texts, 12,340 tokens; mean mixing weight 0.400" in text


def test_what_was_trained(page: Page):
    text = flat(page.html)
    assert "|parameters|1,234,567|optimizer steps|60|tokens of text read|983,040|" in text
    assert "|held-out loss with thoughts, nats|1.510 → 1.100|" in text
    assert "|thoughts that hold the right working|40.0% → 95.0%|" in text


@pytest.mark.parametrize(
    "numbers, opening, change",
    [
        ((0.02, 0.001, 0.04), "Thinking helps", "12.0%, +2.0 points (95% interval +0.1 to +4.0)."),
        ((-0.02, -0.04, -0.001), "Thinking hurts", "8.0%, −2.0 points (95% interval −4.0 to −0.1)."),
        ((0.02, 0.0, 0.04), "Undecided", "12.0%, +2.0 points (95% interval +0.0 to +4.0, which includes zero)."),
        ((-0.02, -0.04, 0.0), "Undecided", "8.0%, −2.0 points (95% interval −4.0 to +0.0, which includes zero)."),
    ],
)
def test_verdict_follows_the_interval(inputs: ReportInputs, tmp_path: Path, numbers: tuple, opening: str, change: str):
    inputs.evaluate_metrics.write_text(json.dumps({"gsm8k": task(*numbers)}))
    assert f"{opening} on gsm8k: accuracy went from 10.0% to {change}" in written(inputs, tmp_path / "out").text


def test_sections_in_the_order_of_the_questions(page: Page):
    sections = [attributes["id"] for tag, attributes in page.elements if tag == "section"]
    assert sections == ["headline", "training", "difficulty", "examples", "tokens", "certainty", "setting"]


def test_every_figure_offers_its_numbers(page: Page):
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures == [
        "heldout-losses",
        "working-share",
        "losses",
        "reward",
        "positive-advantages",
        "mixing-weight",
        "thought-entropy",
        "objective",
        "base-model",
        "deciles",
    ]
    assert sum(tag == "svg" for tag, _ in page.elements) == len(figures)
    pd.testing.assert_frame_equal(
        page.csv("working-share"), train_heldout()[["step", "working_share"]].astype({"step": float})
    )
    assert page.csv("reward")["reward"].tolist() == pytest.approx(0.01 * np.arange(1, 61) + 0.1 * np.sin(range(1, 61)))
    assert page.csv("deciles")["improvement"].tolist() == pytest.approx([0.05 * i - 0.08 for i in range(1, 11)])
    assert len(page.csv("objective")) == STEPS


def test_figures_follow_the_colour_scheme(page: Page):
    """No colour of the drawings' own: ink, series and grid all come from the page."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))
    assert "currentColor" in drawings and "var(--thought)" in drawings and "var(--plain)" in drawings
    assert re.findall(r"(?:fill|stroke|color): *#\w+", drawings) == []


def test_figures_without_numbers_are_left_out(inputs: ReportInputs, tmp_path: Path):
    base_model_steps().head(0).to_csv(inputs.base_model_steps, index=False)
    train_heldout().assign(working_share=None).to_csv(inputs.train_heldout, index=False)
    inputs.train_metrics.write_text(json.dumps(train() | {"working_share": None}))
    page = written(inputs, tmp_path / "out")
    figures = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert "heldout-losses" in figures and "base-model" not in figures and "working-share" not in figures
    assert "right working" not in page.text


def test_examples_are_the_extremes_and_the_median(page: Page):
    for name in ("gsm8k", "commonsense_qa"):
        for chosen, index, probability in (("largest", 5, "80.0%"), ("median", 3, "60.0%"), ("smallest", 0, "30.0%")):
            card = re.search(rf"{name} · {chosen}.*?</article>", page.html, flags=re.DOTALL)[0]
            assert f"Question {index} of {name}?" in card and f"thought {index} of {name}" in card
            verdict = "A, right" if index > 2 else "B, wrong"
            assert "|without|—, wrong|50.0%|" in flat(card) and f"|with|{verdict}|{probability}|" in flat(card)


def test_one_question_is_shown_once(inputs: ReportInputs, tmp_path: Path):
    predictions().head(1).to_parquet(inputs.predictions)
    assert written(inputs, tmp_path / "out").html.count("<article") == 1


def test_heat_map_shows_the_first_passages_in_reading_order(page: Page):
    assert len(page.cells) == 2 * 6 * len(TOKENS)
    assert [cell["data-token"] for cell in page.cells[:4]] == ["Q", ":", " The", " lemur"]
    assert "in text 0" in page.cells[0]["data-thought"] and "in text 1" in page.cells[-1]["data-thought"]
    assert all(cell["tabindex"] == "0" for cell in page.cells)


def test_cells_tell_both_losses_and_are_coloured_by_their_difference(page: Page):
    table = tokens().sort_values(["text", "position"]).head(len(page.cells))
    improvement = table["nll_no_thought"] - table["nll_thought"]
    for cell, better, row in zip(page.cells, improvement, table.itertuples(), strict=True):
        assert cell["class"] == ("t help" if better >= 0 else "t hurt")
        assert cell["data-without"].replace("−", "-") == f"{row.nll_no_thought:.3f}"
        assert cell["data-with-thought"].replace("−", "-") == f"{row.nll_thought:.3f}"
        assert cell["data-improvement"].replace("−", "-") == f"{better:+.3f}"
        assert cell["data-weight"] == "0.250"


def test_full_colour_from_the_95th_percentile_of_all_tokens_on(page: Page):
    size = (tokens()["nll_no_thought"] - tokens()["nll_thought"]).abs().sort_index()
    full = size.quantile(0.95)
    strengths = [float(cell["style"].removeprefix("--s:")) for cell in page.cells]
    assert strengths == pytest.approx((size / full).clip(upper=1).head(len(strengths)).tolist(), abs=0.0051)
    assert f"thought helped, {full:.2f} nats or more" in page.text


def test_thoughts_that_change_nothing_have_no_colour(inputs: ReportInputs, tmp_path: Path):
    tokens().assign(nll_thought=tokens()["nll_no_thought"]).to_parquet(inputs.tokens)
    assert {cell["style"] for cell in written(inputs, tmp_path / "out").cells} == {"--s:0.00"}


def test_whitespace_tokens_show_and_break_the_line(page: Page):
    shown = [cell["data-token"] for cell in page.cells]
    assert shown[4:8] == ["⏎\n", "⏎\n⏎\n", "⇥", "␣␣"]
    assert ">⏎\n</span>" in page.html
    assert ".passage { white-space: pre-wrap" in page.html


def test_corpus_text_is_escaped(page: Page):
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert "<script>alert" not in page.html and "<b>" not in page.html
    assert page.cells[8]["data-token"] == HOSTILE
    assert page.cells[0]["data-thought"] == f"a primate lives in text 0 {HOSTILE}⏎\n"
    assert f"Q: Question 5 of gsm8k? {HOSTILE}\n(A) trees" in page.text
    assert f"thought 5 of gsm8k {HOSTILE}" in page.text


def test_task_names_are_escaped(inputs: ReportInputs, tmp_path: Path):
    inputs.evaluate_metrics.write_text(json.dumps({HOSTILE: task(0.1, 0, 1)}))
    assert "<script>alert" not in written(inputs, tmp_path / "out").html


def test_parameters_verbatim_and_versions(page: Page, inputs: ReportInputs):
    assert inputs.params.read_text() in page.text
    for package in ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas"):
        assert f"|{package}|{version(package)}|" in flat(page.html)


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
