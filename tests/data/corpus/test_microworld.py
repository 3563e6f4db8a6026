"""The micro-world: a function of its seed, with no evaluation question in any text."""

import re
import subprocess
import sys
from collections import Counter
from itertools import accumulate
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.corpus import microworld as world

DASH = "—"
STEPS = st.integers(2, 4)
SEEDS = st.integers(0, 2**32 - 1)


def text(split: str, count: int = 2000, seed: int = 1, steps: int = 2, share: float = 0.9) -> list[str]:
    return list(world.documents(split, count, seed, steps, share))


def question(document: str) -> str:
    return document.removeprefix("Q: ").split("\n")[0]


def ring_numbers(sentence: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d", sentence)))


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {split: text(split) for split in world.TEXT_SPLITS}


def test_splits_have_every_kind_of_document_and_share_no_question(texts: dict[str, list[str]]):
    """Nor do they share a ring's numbers, or an animal's question, which names the pair, with the evaluation."""
    questions = {split: {question(d) for d in some if d.startswith("Q: ")} for split, some in texts.items()}
    for split, some in questions.items():
        assert any(map(ring_numbers, some)) and not all(map(ring_numbers, some))
        assert any(not d.startswith("Q: ") for d in texts[split])
    trained = questions["train"] | questions["pretrain"]
    assert not questions["heldout"] & trained
    probed = {ring_numbers(row["prompt"]) for row in world.probe(300, 1, 2)}
    assert not probed & set(map(ring_numbers, trained))
    rings = {ring_numbers(q["question"]) for q in world.gsm8k_questions(400, 1, 2)}
    held = set(map(ring_numbers, trained | questions["heldout"])) - {()}
    assert len(held) > 100 and rings and all(len(numbers) == 3 for numbers in rings | held)
    assert not rings & held
    animals = {q["question"].lower() for q in world.commonsense_qa_questions(400, 1)}
    assert len(animals) > 10
    assert not any(asked in d.lower() for asked in animals for some in texts.values() for d in some)


def test_asides(texts: dict[str, list[str]]):
    """Only pretraining has them. A ring's aside is its working, its numbers or an idle remark."""
    assert not any(DASH in d for d in [*texts["train"], *texts["heldout"], *text("pretrain", 300, share=0.0)])
    kinds: Counter[str] = Counter()
    for document in texts["pretrain"]:
        numbers, aside = ring_numbers(question(document)), re.search(f"{DASH} (.*?) {DASH}", document)
        if document.startswith("Q: ") and numbers and aside:
            known = {working(numbers): "working", " ".join(map(str, numbers)): "restated"}
            kinds[known.get(aside[1], "idle" if aside[1] in world.REMARKS else "unknown")] += 1
    assert min(kinds[kind] for kind in ("working", "restated", "idle")) > 20 and not kinds["unknown"]


def working(numbers: tuple[int, ...]) -> str:
    return " ".join(str(total % 10) for total in accumulate(numbers))


@given(SEEDS, STEPS)
@settings(max_examples=20)
def test_ring_questions_and_probe_hold_the_right_working(seed: int, steps: int):
    for row in world.gsm8k_questions(5, seed, steps):
        numbers = ring_numbers(row["question"])
        assert len(numbers) == steps + 1
        assert row["answer"].split("\n") == [working(numbers), f"#### {sum(numbers) % 10}"]
    for row in world.probe(5, seed, steps):
        assert row["prompt"].endswith("\nA:")
        assert row["working"] == working(ring_numbers(question(row["prompt"])))


@given(SEEDS)
@settings(max_examples=20)
def test_commonsense_qa_questions_have_one_right_choice(seed: int):
    for row in world.commonsense_qa_questions(5, seed):
        assert row["choices"]["label"] == list("ABCDE") and len(set(row["choices"]["text"])) == 5
        asked = row["question"]
        named = [value for value in world.ANIMALS.values() if any(f" {a}" in asked for a in value[2].split())]
        ((home, food, _),) = named
        assert row["choices"]["text"]["ABCDE".index(row["answerKey"])] == (food if " eat" in asked else home)


def test_the_right_answer_is_spread_over_the_choices():
    keys = [row["answerKey"] for row in world.commonsense_qa_questions(1000, 1)]
    assert all(150 < keys.count(letter) < 250 for letter in "ABCDE")


def test_another_process_makes_the_same_text_and_another_seed_another():
    """Whatever order it gives to sets of strings. It imports the file alone: the package would load torch."""
    code = (
        "import microworld as w; print(*w.documents('pretrain', 200, 1, 2, 0.9), w.gsm8k_questions(20, 1, 2), "
        "w.commonsense_qa_questions(20, 1))"
    )
    assert text("train", 20, seed=1) != text("train", 20, seed=2)
    own = (*text("pretrain", 200), world.gsm8k_questions(20, 1, 2), world.commonsense_qa_questions(20, 1))
    for seed in ("0", "12345"):
        environment, folder = {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}, Path(world.__file__).parent
        told = subprocess.check_output([sys.executable, "-c", code], cwd=folder, env=environment)
        assert told.decode() == " ".join(map(str, own)) + "\n"
