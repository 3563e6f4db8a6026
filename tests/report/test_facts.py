"""What the page says was trained."""

from pathlib import Path

import pytest

from pipeline import params
from pipeline.report.facts import what_it_does
from pipeline.report.method import METHODS

STAGES = [
    {"thought_tokens": 9, "lookahead": 4, "learning_rate": 1e-4, "steps": 5},
    {"thought_tokens": 3, "lookahead": 1, "learning_rate": 1e-4, "steps": 5},
]


@pytest.mark.parametrize(
    "stages, lengths",
    [([], ["5 tokens", "2 tokens"]), (STAGES, ["9 tokens, then 3 tokens", "4 tokens, then 1 token "])],
)
def test_lengths_are_those_of_every_stage(stages: list[dict], lengths: list[str]):
    changes = {"arms.methods": ["quiet_star"], "train.stages": stages}
    told = what_it_does(METHODS["quiet_star"], params.load(Path(__file__).parents[2] / "params.yaml", changes))
    assert [length in told for length in lengths] == [True, True], told


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("every", "after every token of a text"),
        ("random", "after a random 25"),
        ("marker", "after each “A:” of a text"),
    ],
)
def test_where_the_run_thinks_is_told(where: str, words: str):
    given = params.load(Path(__file__).parents[2] / "params.yaml", {"train.thinking.where": where})
    assert words in what_it_does(METHODS["quiet_star"], given) and words in what_it_does(METHODS["pause"], given)
