"""Runs of the other methods: pauses have no words to show, and a run without thoughts says nothing about thoughts."""

import re
import shutil
from pathlib import Path

from fake_outputs import GROUPS, write_run
from report_page import Page, flat


def test_sections_and_contents_are_the_same(page: Page, plain: Page, pausing: Page):
    for one in (page, plain, pausing):
        assert one.ids("section") == ["trained", "helped", "where", "certainty", "training", "setting"]
        assert re.findall(r'href="#(\w+)"', one.part("<nav", "</nav>")) == one.ids("section")


def test_pauses_are_called_pauses(pausing: Page):
    assert "|Did pausing help?|" in pausing.flat and "|method|pause tokens|" in pausing.flat
    assert "Pausing helps on gsm8k: accuracy is 10.0% without pauses and 90.0% with, +80.0 points" in pausing.text
    assert "On gsm8k, training with pauses has a higher accuracy than the base model" in pausing.text
    assert "|Accuracy: pauses against the others|" in pausing.flat
    assert "the thought before" not in pausing.text and "thoughts add" not in pausing.text


def test_pauses_have_figures_but_no_words(pausing: Page):
    training = ["heldout-losses", "losses", "mixing-weight", "base-model"]
    assert pausing.ids("figure") == ["accuracy", "votes-1-gsm8k", *GROUPS, "density", *training]
    assert {cell["data-thought"] for cell in pausing.cells} == {""}
    assert 'data-slot="thought"' not in pausing.html
    questions = pausing.part("<h3>Questions</h3>", "<h3")
    assert "<mark>" not in questions and "|with pauses|A, right|" in flat(questions)


def test_no_claim_about_thoughts_without_thoughts(plain: Page):
    assert "it was trained without thoughts, so it alone cannot answer the question." in plain.text
    assert re.findall(r"Thinking (?:helps|hurts)|Undecided on", plain.text) == []
    assert "with thoughts" not in plain.text and "thoughts add" not in plain.text
    assert "On gsm8k, training without thoughts has a higher accuracy than the base model" in plain.text


def test_what_makes_no_sense_without_thoughts_is_left_out_and_said(plain: Page):
    assert plain.ids("figure") == ["accuracy", "votes-1-gsm8k", "heldout-losses", "losses", "base-model"]
    assert "This run was trained without thoughts (method no_thought)" in plain.text
    assert plain.cells == [] and "<script" not in plain.html
    assert "|gsm8k|accuracy|9.5%|10.0%|1,400|" in plain.flat and "|loss, nats per token|1.234|perplexity|" in plain.flat
    assert "|gsm8k|maj@8|50.0%|32|8|" in plain.flat
    assert set(plain.csv("votes-1-gsm8k")["way"]) == {"no_thought"}
    assert "gained most probability from training" in plain.text
    assert "|before training|—, wrong|25.0%|after training|—, wrong|" in plain.flat


def test_a_run_without_thoughts_needs_no_file_on_thoughts(tmp_path: Path, undrawn):
    folder = write_run(tmp_path, "no_thought") / "results/perplexity"
    shutil.copy(folder / "metrics.json", tmp_path)
    shutil.rmtree(folder)
    folder.mkdir()
    shutil.copy(tmp_path / "metrics.json", folder)
    Page(tmp_path)
