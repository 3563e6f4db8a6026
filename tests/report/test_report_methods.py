"""Runs of the other methods: pauses have no words to show, and where nothing thinks nothing is said of thoughts."""

import re
from pathlib import Path

import pytest
from fake_outputs import GROUPS, write_inputs
from report_page import Page, written


@pytest.fixture(scope="module")
def pausing(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("pause")
    return written(write_inputs(folder, "pause"), folder / "out")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Page:
    folder = tmp_path_factory.mktemp("no_thought")
    return written(write_inputs(folder, "no_thought"), folder / "out")


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
    questions = re.search(r"<h3>Questions</h3>.*?<h3", pausing.html, flags=re.DOTALL)[0]
    assert "<mark>" not in questions and "|with pauses|A, right|" in re.sub(r"(<[^>]*>\s*)+", "|", questions)


def test_no_claim_about_thoughts_where_nothing_thinks(plain: Page):
    assert "Nothing thinks in this run: it is the control, and it alone cannot say." in plain.text
    assert re.findall(r"Thinking (?:helps|hurts)|Undecided on", plain.text) == []
    assert "with thoughts" not in plain.text and "thoughts add" not in plain.text
    assert "On gsm8k, training without thoughts has a higher accuracy than the base model" in plain.text


def test_what_makes_no_sense_without_thoughts_is_left_out_and_said(plain: Page):
    assert plain.ids("figure") == ["accuracy", "votes-1-gsm8k", "heldout-losses", "losses", "base-model"]
    assert "This run is of method no_thought: nothing in it thinks" in plain.text
    assert plain.cells == [] and "<script" not in plain.html
    assert "|gsm8k|accuracy|9.5%|10.0%|1,400|" in plain.flat and "|loss, nats per token|1.234|perplexity|" in plain.flat
    assert "|gsm8k|maj@8|50.0%|32|8|" in plain.flat
    assert set(plain.csv("votes-1-gsm8k")["way"]) == {"no_thought"}


def test_questions_are_shown_before_and_after_training(plain: Page):
    assert "gained most probability from training" in plain.text
    assert "|before training|—, wrong|25.0%|after training|—, wrong|" in plain.flat


def test_sections_and_contents_are_the_same(plain: Page, pausing: Page):
    sections = ["trained", "helped", "where", "certainty", "training", "setting"]
    assert plain.ids("section") == pausing.ids("section") == sections


@pytest.mark.parametrize("name", ["tokens", "density", "extremes", *GROUPS])
def test_a_run_that_does_not_think_needs_no_file_on_thoughts(tmp_path: Path, undrawn, name: str):
    inputs = write_inputs(tmp_path, "no_thought")
    getattr(inputs, name).unlink()
    written(inputs, tmp_path / "out")
