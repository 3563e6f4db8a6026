"""maj@k equals listing every subset; figures and files are what their names say."""

import json
from fractions import Fraction
from itertools import combinations, product
from math import comb, prod
from pathlib import Path
from statistics import multimode

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluation.chain_of_thought import vote
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE, difference, mean_interval, totals
from tests.evaluation.chain_of_thought.asking import params, tasks_folder, trained_folder


def listed(votes: list[str], answer: str) -> list[float]:
    """The mean point of all subsets of k votes, for each k."""
    means = []
    for k in vote.sizes(len(votes)):
        best = [multimode(filter(None, subset)) for subset in combinations(votes, k)]
        means.append(float(sum(Fraction(answer in some, max(1, len(some))) for some in best) / len(best)))
    return means


@given(st.lists(st.sampled_from(["", "", "1", "1", "2", "3", "4"]), min_size=1, max_size=9))
@settings(max_examples=100)
def test_it_equals_listing_every_subset(votes: list[str]):
    assert vote.majority(votes, "1") == pytest.approx(listed(votes, "1"), rel=1e-13, abs=0)


def composed(counts: list[int], blank: int) -> list[float]:
    """The same from every way to compose a subset; the right answer's count is the first."""
    total, mean = sum(counts) + blank, {k: Fraction(0) for k in vote.sizes(sum(counts) + blank)}
    for taken in product(*(range(count + 1) for count in (*counts, blank))):
        right, *others, _ = taken
        if right and right == max(taken[:-1]) and sum(taken) in mean:
            ways = prod(comb(count, number) for count, number in zip((*counts, blank), taken, strict=True))
            mean[sum(taken)] += Fraction(ways, (1 + others.count(right)) * comb(total, sum(taken)))
    return [float(value) for value in mean.values()]


@pytest.mark.parametrize("counts, blank", [([20, 21, 20], 3), ([1, 60, 3], 0), ([30, 30], 4), ([10, 9, 8, 7], 30)])
def test_64_samples(counts: list[int], blank: int):
    votes = [str(i) for i, count in enumerate(counts) for _ in range(count)] + [""] * blank
    assert [vote.sizes(n) for n in (1, 2, 6, 64)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8, 16, 32, 64]]
    assert vote.majority(votes, "0") == pytest.approx(composed(counts, blank), rel=1e-12, abs=1e-300)


VOTES = {  # by way, by question; the right answer is 1
    "thought": [["1", "1", "2", ""], ["2", "1", "1", "1"], ["1", "2", "3", "4"], ["", "", "", "1"], ["1"] * 4],
    "no_thought": [["1", "2", "2", "2"], ["2", "2", "", ""], ["2", "3", "3", "3"], [""] * 4, ["1", "1", "2", "3"]],
}


def rows(task: str = "t", groups: str = "abcde") -> list[dict]:
    """The rows of five questions, each of which has a letter of ``groups``."""
    about = {"task": task, "answer": "1"}
    places = product(range(5), VOTES)
    return [about | {"index": i, "way": way, "votes": VOTES[way][i], "group": groups[i]} for i, way in places]


def test_figures_of_both_ways_and_their_difference():
    expected = {way: np.array([listed(votes, "1") for votes in VOTES[way]]) for way in VOTES}
    metrics, names = vote.metrics_of(vote.points_of(rows()), 4)["t"], ["accuracy@1", "maj@2", "maj@4"]
    assert list(metrics) == ["n", "groups", "samples", "thought", "no_thought", "difference"]
    assert (metrics["n"], metrics["groups"], metrics["samples"]) == (5, 5, 4)
    for way, values in expected.items():
        assert metrics[way] == pytest.approx(dict(zip(names, values.mean(0), strict=True)))
    for i, name in enumerate(names):
        value, low, high, _ = difference(*(totals(values[:, i]) for values in expected.values()), SHARE_DIFFERENCE)
        found = metrics["difference"][name]
        assert [found[x] for x in ("mean", "ci_low", "ci_high")] == pytest.approx([value, low, high])
        assert ("p_value" in found) == (name == "maj@4")
    assert metrics["difference"]["maj@4"]["p_value"] is None  # five questions are too few

    votes = vote.votes_of(vote.points_of([*rows("t"), *rows("u")]), 4)
    assert list(votes.columns) == ["task", "way", "k", "accuracy", "ci_low", "ci_high", "n", "groups"]
    places = [list(place) for place in product("tu", VOTES, (1, 2, 4))]
    assert votes[["task", "way", "k"]].values.tolist() == places
    assert votes["accuracy"].tolist() == pytest.approx([x for values in expected.values() for x in values.mean(0)] * 2)
    low, high = mean_interval(totals(expected["thought"][:, 1]), SHARE)
    assert votes.loc[1, ["ci_low", "ci_high", "n", "groups"]].tolist() == pytest.approx([low, high, 5, 5])


def test_intervals_are_over_groups_of_questions():
    """Means are what they were, as no group weighs more than its questions."""
    groups = "abbcc"
    points = vote.points_of(rows(groups=groups))
    votes, metrics = vote.votes_of(points, 4), vote.metrics_of(points, 4)["t"]
    assert votes["accuracy"].tolist() == pytest.approx(vote.votes_of(vote.points_of(rows()), 4)["accuracy"].tolist())
    assert (metrics["n"], metrics["groups"], *votes.loc[2, ["n", "groups"]]) == (5, 3, 5, 3)
    one, other = (totals(np.array([listed(one, "1")[2] for one in VOTES[way]]), list(groups)) for way in VOTES)
    assert votes.loc[2, ["ci_low", "ci_high"]].tolist() == pytest.approx(mean_interval(one, SHARE).tolist())
    expected = difference(one, other, SHARE_DIFFERENCE)
    found = metrics["difference"]["maj@4"]
    assert [found[x] for x in ("mean", "ci_low", "ci_high")] == pytest.approx(expected[:3])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    trained_folder(tmp_path / "model")
    tasks_folder(tmp_path / "tasks", count=4)
    return tmp_path


def write(folder: Path, **changes: object) -> None:
    vote.write_chain_of_thought(params(**changes), folder / "model", folder / "tasks", folder / "out")


def test_files_are_as_the_contract_has_them(folder: Path):
    write(folder, questions=3)
    table = pd.read_parquet(folder / "out/samples.parquet")
    assert list(table.columns) == vote.SAMPLES.names
    rows = [(t, i, w, s) for t in "ab" for i in range(3) for w in ("thought", "no_thought") for s in range(4)]
    assert list(table[["task", "index", "way", "sample"]].itertuples(index=False, name=None)) == rows
    assert (table["correct"] == (table["vote"] == table["answer"])).all()
    assert table.query("task == 'a'").groupby("index")["answer"].first().tolist() == ["0", "1", "2"]
    metrics = json.loads((folder / "out/metrics.json").read_text())
    assert list(metrics) == ["a", "b"] and metrics["a"]["n"] == 3
    right = table.groupby(["task", "way"], sort=False)["correct"].mean().tolist()
    assert pd.read_csv(folder / "out/votes.csv").query("k == 1")["accuracy"].tolist() == pytest.approx(right)


def test_a_model_without_thoughts_has_no_difference_and_tasks_without_reasoning_are_absent(folder: Path):
    trained_folder(folder / "model", method="no_thought")
    write(folder, questions=2)
    assert set(pd.read_parquet(folder / "out/samples.parquet")["way"]) == {"no_thought"}
    assert list(json.loads((folder / "out/metrics.json").read_text())["a"]) == ["n", "groups", "samples", "no_thought"]
    for name in "ab":
        (folder / f"tasks/{name}.yaml").unlink()
    write(folder)
    assert json.loads((folder / "out/metrics.json").read_text()) == {}
    assert list(pd.read_parquet(folder / "out/samples.parquet").columns) == vote.SAMPLES.names
    assert pd.read_csv(folder / "out/votes.csv").empty


def test_samples_are_written_in_bfloat16_too(folder: Path):
    """Draws are the same numbers, so most samples begin as in float32."""
    texts = []
    for precision in ("float32", "bfloat16"):
        write(folder, questions=3, precision=precision)
        texts.append(pd.read_parquet(folder / "out/samples.parquet").query("way == 'no_thought'")["text"].str[:2])
    assert (texts[0] == texts[1]).mean() > 0.7
