"""Runs of the other methods: pauses have no words to show, and a run without thoughts says nothing about thoughts."""

import re
import shutil
from pathlib import Path

from fake_outputs import GROUPS, write_run
from report_page import Page, flat


def test_sections_and_contents_are_the_same(pages: dict[str, Page]):
    for one in pages.values():
        assert one.ids("section") == ["trained", "helped", "where", "certainty", "training", "setting"]
        assert re.findall(r'href="#(\w+)"', one.part("<nav", "</nav>")) == one.ids("section")


def test_pauses_have_figures_but_no_words(pages: dict[str, Page]):
    page = pages["pause"]
    assert "|Did pausing help?|" in page.flat and "|method|pause tokens|" in page.flat
    assert "Pausing helps on gsm8k: accuracy is 10.0% without pauses and 90.0% with, +80.0 points" in page.text
    assert "On gsm8k, training with pauses has a higher accuracy than the base model" in page.text
    assert "|Accuracy: pauses against the others|" in page.flat
    assert "the thought before" not in page.text and "thoughts add" not in page.text
    training = ["heldout-losses", "losses", "mixing-weight", "base-model"]
    assert page.ids("figure") == ["accuracy", "votes-1-gsm8k", *GROUPS, "density", *training]
    assert {cell["data-thought"] for cell in page.cells} == {""}
    assert 'data-slot="thought"' not in page.html
    questions = page.part("<h3>Questions</h3>", "<h3")
    assert "<mark>" not in questions and "|with pauses|A, right|" in flat(questions)


def test_a_run_without_thoughts_claims_nothing_about_them(pages: dict[str, Page]):
    page = pages["no_thought"]
    assert "it was trained without thoughts, so it alone cannot answer the question." in page.text
    assert re.findall(r"Thinking (?:helps|hurts)|Undecided on", page.text) == []
    assert "with thoughts" not in page.text and "thoughts add" not in page.text
    assert "On gsm8k, training without thoughts has a higher accuracy than the base model" in page.text
    assert "This run was trained without thoughts (method no_thought)" in page.text
    assert page.ids("figure") == ["accuracy", "votes-1-gsm8k", "heldout-losses", "losses", "base-model"]
    assert page.cells == [] and "<script" not in page.html
    assert "|gsm8k|accuracy|9.5%|10.0%|1,400|" in page.flat and "|loss, nats per token|1.234|perplexity|" in page.flat
    assert "|gsm8k|maj@8|50.0%|32|8|" in page.flat
    assert set(page.csv("votes-1-gsm8k")["way"]) == {"no_thought"}
    assert "gained most probability from training" in page.text
    assert "|before training|—, wrong|25.0%|after training|—, wrong|" in page.flat


def test_a_run_without_thoughts_needs_no_file_on_thoughts(tmp_path: Path, undrawn):
    folder = write_run(tmp_path, "no_thought") / "results/perplexity"
    shutil.copy(folder / "metrics.json", tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(tmp_path / "metrics.json", folder)
    Page(tmp_path)
