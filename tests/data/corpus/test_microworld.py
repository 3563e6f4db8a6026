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
from tests.micro_documents import KINDS

DASH = "—"
LAST = ("test", "validation")
MOVES = st.sampled_from([(2, 2), (2, 6), (4, 5)])
SEEDS = st.integers(0, 2**32 - 1)


def text(split: str, count: int = 2000, seed: int = 1, share: float | None = None) -> list[str]:
    """As the corpus has it: only pretraining has asides and worked problems."""
    share = share if share is not None else 0.9 if split == "pretrain" else 0.0
    return list(world.documents(split, count, seed, (2, 4), share, 0.3 if share else 0.0, KINDS))


def asked(task: str, count: int, split: str = "test", seed: int = 1, moves: world.Moves = (2, 4)) -> list[dict]:
    return world.questions(task, split, count, seed, moves)


def question(document: str) -> str:
    """The question's own sentences, without choices and answer."""
    return document.removeprefix("Q: ").split("\n")[0]


def ring_numbers(sentence: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d", sentence)))


@pytest.fixture(scope="module")
def texts() -> dict[str, list[str]]:
    return {split: text(split) for split in world.TEXT_SPLITS}


@pytest.fixture(scope="module")
def questions(texts: dict[str, list[str]]) -> dict[str, set[str]]:
    return {split: {question(d) for d in some if d.startswith("Q: ")} for split, some in texts.items()}


def test_every_kind_of_document_is_in_every_split(texts: dict[str, list[str]], questions: dict[str, set[str]]):
    for split, some in questions.items():
        assert any(map(ring_numbers, some)) and not all(map(ring_numbers, some))
        assert any(not d.startswith("Q: ") for d in texts[split])


def test_splits_share_no_question(texts: dict[str, list[str]], questions: dict[str, set[str]]):
    """Nor do they share a ring's numbers, or an animal's question, with the questions that are asked in the end."""
    trained = questions["train"] | questions["pretrain"]
    assert not questions["heldout"] & trained
    probed = {ring_numbers(question(row["prompt"])) for row in world.probe(world.TASKS, 300, 1, (2, 4))} - {()}
    assert probed and not probed & set(map(ring_numbers, trained))
    rings, validation = ({ring_numbers(q["question"]) for q in asked("rings", 400, split)} for split in LAST)
    held = set(map(ring_numbers, trained | questions["heldout"])) - {()}
    lengths = [{len(moved(numbers)) for numbers in some} for some in (held, rings)]
    assert len(held) > 100 and lengths == [{2, 3, 4}] * 2
    assert not rings & held and not validation & (held | rings)
    animals, others = ({q["question"].lower() for q in asked("animals", 2000, split)} for split in LAST)
    assert not animals & others
    assert not any(one in d.lower() for one in animals | others for some in texts.values() for d in some)


def test_questions_differ_enough_to_count():
    """At least 20 facts and 120 pairs of animal and relation; a group is a fact, or a ring's numbers."""
    animals = asked("animals", 2000)
    assert len({q["question"] for q in animals}) >= 120 and len({q["group"] for q in animals}) >= 20
    for q in animals[:50]:
        answer = q["choices"]["text"]["ABCDE".index(q["answerKey"])]
        assert q["group"].endswith(answer)
    assert all(ring_numbers(q["group"]) == ring_numbers(q["question"]) for q in asked("rings", 50))


def test_asides(texts: dict[str, list[str]]):
    """Only pretraining has them. A ring's aside is its working, its moves or an idle remark."""
    assert not any(DASH in d for d in [*texts["train"], *texts["heldout"], *text("pretrain", 300, share=0.0)])
    kinds: Counter[str] = Counter()
    for document in texts["pretrain"]:
        numbers, aside = ring_numbers(question(document)), re.search(f"{DASH} (.*?) {DASH}", document)
        if "\nA:" in document and numbers and aside:
            known = {working(numbers): "working", " ".join(("by", *map(str, numbers[1:]))): "restated"}
            kinds[known.get(aside[1], "idle" if aside[1] in world.REMARKS else "unknown")] += 1
    assert min(kinds[kind] for kind in ("working", "restated", "idle")) > 20 and not kinds["unknown"]


def test_worked_problems(texts: dict[str, list[str]]):
    """Only pretraining has them: three in ten, with full working and answer; half of the rings, the numbers."""
    assert not any(re.search("\n[WN]:", d) for d in [*texts["train"], *texts["heldout"]])
    problems = [d for d in texts["pretrain"] if d.startswith("Q: ")]
    worked, copied = (re.findall(rf"(Q: .*(?:\n\(.*)*)\n{mark}: (.*)", "\n".join(problems)) for mark in "WN")
    assert len(worked + copied) / len(problems) == pytest.approx(0.3, abs=0.05)
    for asked, solution in worked:
        found, answer = re.fullmatch(f"{DASH} (.*) {DASH} (.)", solution).groups()
        if numbers := ring_numbers(question(asked)):
            assert found == working(numbers) and found.endswith(answer)
        else:
            assert f"({answer}) {found.split()[-2]}" in asked and found.split()[0] in world.TRAITS
    for asked, numbers in copied:
        assert numbers == f"{DASH} {' '.join(map(str, ring_numbers(question(asked))))} {DASH}"
    rings = sum(bool(ring_numbers(question(asked))) for asked, _ in worked)
    assert len(copied) / (rings + len(copied)) == pytest.approx(0.5, abs=0.1)


def moved(numbers: tuple[int, ...]) -> tuple[int, ...]:
    """The moves after the start, without the zeros at the end."""
    return tuple(number for number in numbers[1:] if number)


def working(numbers: tuple[int, ...]) -> str:
    return " ".join(str(total % 10) for total in accumulate((numbers[0], *moved(numbers))))


@given(SEEDS, MOVES)
@settings(max_examples=20)
def test_ring_questions_hold_the_right_working(seed: int, moves: tuple[int, int]):
    for row in asked("rings", 5, seed=seed, moves=moves):
        numbers = ring_numbers(row["question"])
        assert numbers[1:] == (*moved(numbers), *[0] * (moves[1] - row["moves"]))  # zeros are at the end
        assert moves[0] <= row["moves"] == len(moved(numbers)) <= moves[1]
        assert row["answer"].split("\n") == [working(numbers), f"#### {sum(numbers) % 10}"]


@given(SEEDS)
@settings(max_examples=20)
def test_the_probe_holds_the_right_working(seed: int):
    for row in world.probe(world.TASKS, 5, seed, (2, 4)):
        assert row["prompt"].endswith("\nA:")
        if row["task"] == "rings":
            assert row["working"] == working(ring_numbers(question(row["prompt"])))
        else:
            *fact, letter = row["working"].split()
            assert f"({letter}) {fact[-1]}" in row["prompt"] and fact[0] in world.TRAITS


@given(SEEDS)
@settings(max_examples=20)
def test_animal_questions_have_one_right_choice(seed: int):
    for row in asked("animals", 5, seed=seed):
        assert row["choices"]["label"] == list("ABCDE") and len(set(row["choices"]["text"])) == 5
        words = row["question"].rstrip("?").split()
        [kind] = [kind for kind, members in world.MEMBERS.items() if words[3] in members]
        right = dict(zip(("live", "eat", "fear", "like"), world.TRAITS[kind], strict=True))[words[-1]]
        assert row["choices"]["text"]["ABCDE".index(row["answerKey"])] == right


def test_the_right_answer_is_spread_over_the_choices():
    keys = [row["answerKey"] for row in asked("animals", 1000)]
    assert all(150 < keys.count(letter) < 250 for letter in "ABCDE")


def test_another_process_makes_the_same_text_and_another_seed_another():
    """Whatever order it gives to sets of strings. It imports the file alone: the package would load torch."""
    code = (
        f"import microworld as w; print(*w.documents('pretrain', 200, 1, (2, 4), 0.9, 0.3, {KINDS}), "
        "*(w.questions(task, 'test', 20, 1, (2, 4)) for task in w.TASKS))"
    )
    assert text("train", 20, seed=1) != text("train", 20, seed=2)
    own = (*text("pretrain", 200), *(asked(task, 20) for task in world.TASKS))
    for seed in ("0", "12345"):
        environment = {"PYTHONHASHSEED": seed, "PYTHONIOENCODING": "utf-8"}
        folder = Path(world.__file__).parent
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=True
        )
        assert done.stdout.decode() == " ".join(map(str, own)) + "\n"


@pytest.mark.parametrize(("kind", "begins"), [("rings", "Q: "), ("lookups", "Lines:"), ("facts", "From ")])
def test_documents_are_of_the_kinds_that_are_wanted(kind: str, begins: str):
    only = world.documents("pretrain", 50, 1, (2, 4), 0.9, 0.3, KINDS | dict.fromkeys(KINDS, 0) | {kind: 3})
    assert all(document.startswith(begins) for document in only)
    drawn = Counter(document.split()[0] for document in world.documents("train", 4000, 1, (2, 4), 0.9, 0.3, KINDS))
    assert drawn[begins.split()[0]] / 4000 == pytest.approx({"Q: ": 0.66}.get(begins, KINDS[kind]), abs=0.03)
