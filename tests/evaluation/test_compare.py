"""The comparison of arms: which figures and differences there are, and that they are those of `statistics`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.data.tasks.ask import CONTENT, NOT_TASKS
from pipeline.errors import UserError
from pipeline.evaluation.compare import write_compare
from pipeline.evaluation.statistics import SHARE, SHARE_DIFFERENCE, Totals, difference, mean_interval, totals
from pipeline.params import Arms

GROUPS = list("aabbccddeeff")
PARTS = ["9", "10", "10", "2"] * 3  # of the animals; the rings have one
COUNTS = [3, 1, 4, 1, 5, 9, 2]  # tokens of each held-out text
AFTER = [i % 4 == 2 for i in range(sum(COUNTS))]  # which of them follow the marker
# the share of answers that each way has right, and its loss on held-out text
SAMPLING = {"thought": 0.9, "no_thought": 0.3, "swapped": 0.4, "random": 0.2, "same_last": 0.5}
WAYS = {
    "quiet_star": SAMPLING,
    "no_policy": {**SAMPLING, "thought": 0.4},
    "pause": {"thought": 0.5, "no_thought": 0.2},
    "untrained": {"thought": 0.2, "no_thought": 0.3, "sampled": 0.3, "mean16": 0.4},
    "no_thought": {"no_thought": 0.4},
    "before": {"no_thought": 0.2},
}
THINKING, SEEDS = ("quiet_star", "no_policy"), [1, 2]


def write_run(folder: Path, method: str, seed: int, tasks: tuple[str, ...] = ("rings", "animals")) -> None:
    """A run's answers and losses; each way differs, and few questions have a `same_last` thought."""
    rng = np.random.default_rng([seed, *method.encode()])
    rows = [
        {"task": task, "index": i, "group": group, "prompt": f"{task} {i}", "way": way, "correct": rng.random() < share}
        | {"part": PARTS[i] if task == "animals" else "1"}
        for task in tasks
        for way, share in WAYS[method].items()
        for i, group in enumerate(GROUPS)
        if way != "same_last" or i % 3 == seed % 2
    ]
    answers = pd.DataFrame(rows).assign(prob=rng.random(len(rows)))
    answers["correct_norm"] = (~answers["correct"]).where(answers["task"] == "rings", None)  # as if rings were of texts
    tokens = pd.DataFrame({"text": np.repeat(np.arange(len(COUNTS)), COUNTS)}).assign(
        token="a", after_marker=AFTER, nll_before=2 + np.random.default_rng(seed).random(sum(COUNTS))
    )
    for way in ("no_thought", "thought", "swapped", "random"):
        if way not in WAYS[method]:
            continue
        tokens[f"nll_{way}"] = 2 - WAYS[method].get(way, 0) + rng.random(len(tokens))
    for kind, name, table in (("evaluate", "predictions", answers), ("perplexity", "tokens", tokens)):
        path = folder / kind / f"{method}-{seed}"
        path.mkdir(parents=True)
        table.to_parquet(path / f"{name}.parquet")
    cost = {"thought_length": 4.0 + seed, "operations": 7.5}
    (folder / f"evaluate/{method}-{seed}/metrics.json").write_text(json.dumps({"cost": cost}))


def compared(folder: Path, methods: list[str], seeds: list[int]) -> tuple:
    """figures.csv and comparisons.csv by what they are of, seeds.csv, and the summary."""
    write_compare(Arms(methods, seeds), *(folder / name for name in ("evaluate", "perplexity", "out", "summary.json")))
    names = ["task", "measure", "arm"]
    figures = pd.read_csv(folder / "out/figures.csv").set_index(names).sort_index()
    comparisons = pd.read_csv(folder / "out/comparisons.csv").set_index([*names, "against"]).sort_index()
    summary = json.loads((folder / "summary.json").read_text())
    return figures, comparisons, pd.read_csv(folder / "out/seeds.csv"), summary


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of every method with two seeds."""
    root = tmp_path_factory.mktemp("arms")
    for method in WAYS:
        for seed in SEEDS:
            write_run(root, method, seed)
    return root


def answers(folder: Path, method: str, way: str, column: str = "correct", task: str = "rings") -> Totals:
    """What a way of a method answered of the rings, or of TASK/PART, read anew."""
    values, (task, _, part) = [], task.partition("/")
    for seed in SEEDS:
        rows = pd.read_parquet(folder / f"evaluate/{method}-{seed}/predictions.parquet")
        rows = rows[(rows["task"] == task) & (rows["way"] == way) & ((rows["part"] == part) | (part == ""))]
        values.append(rows.sort_values("index")[column])
    return totals(np.stack(values), rows.sort_values("index")["group"])


def losses(folder: Path, method: str, column: str) -> Totals:
    tables = [pd.read_parquet(folder / f"perplexity/{method}-{seed}/tokens.parquet") for seed in SEEDS]
    sums = np.stack([table.groupby("text")[column].sum() for table in tables])
    return Totals(sums, np.tile(np.array(COUNTS, float), (len(SEEDS), 1)))


def test_every_arm_has_its_figures(folder: Path):
    found, _, seeds, _ = compared(folder, list(WAYS), SEEDS)
    assert list(found.columns) == ["seeds", "n", "groups", "value", "low", "high"]
    sampling = {f"{arm}{way}" for arm in THINKING for way in ("", "/thoughts_off", "/swapped", "/random")}
    text = {*sampling, "pause", "pause/thoughts_off", "untrained", "untrained/thoughts_off", "no_thought", "before"}
    rare = {f"{arm}/{way}" for arm in THINKING for way in ("same_last", "own_where_same_last")}
    assert set(found.loc["heldout", "loss"].index) == text
    for measure in ("accuracy", "prob"):
        assert set(found.loc["rings", measure].index) == text | rare | {"untrained/sampled", "untrained/mean16"}
    for arm, method, way in (
        ("quiet_star", "quiet_star", "thought"),
        ("pause/thoughts_off", "pause", "no_thought"),
        ("no_thought", "no_thought", "no_thought"),
        ("untrained/mean16", "untrained", "mean16"),
    ):
        side, row = answers(folder, method, way, "prob"), found.loc["rings", "prob", arm]
        assert row.to_list() == pytest.approx([2, 12, 6, np.mean(side.sums.sum(1) / 12), *mean_interval(side, SHARE)])
    side, row = losses(folder, "before", "nll_before"), found.loc["heldout", "loss", "before"]
    value = np.mean(side.sums.sum(1) / sum(COUNTS))
    assert row.to_list() == pytest.approx([2, 25, 7, value, *mean_interval(side, None)])
    assert set(found.loc["heldout", "loss_after_marker"].index) == text
    each = seeds[(seeds["task"] == "rings") & (seeds["measure"] == "prob") & (seeds["arm"] == "quiet_star")]
    of_part = found.index.get_level_values("task").str.contains("/")
    assert list(each["seed"]) == SEEDS and len(seeds) == 2 * (~of_part).sum()
    assert each["value"].mean() == pytest.approx(found.loc["rings", "prob", "quiet_star"]["value"])


def test_a_task_of_texts_has_its_accuracy_by_byte_too(folder: Path):
    found, comparisons, _, summary = compared(folder, list(WAYS), SEEDS)
    assert "accuracy_norm" not in found.loc["animals"].index
    side, row = (
        answers(folder, "quiet_star", "thought", "correct_norm"),
        found.loc["rings", "accuracy_norm", "quiet_star"],
    )
    assert row.to_list() == pytest.approx([2, 12, 6, np.mean(side.sums.sum(1) / 12), *mean_interval(side, SHARE)])
    key = ("quiet_star", "quiet_star/swapped")
    assert comparisons.loc[("rings", "accuracy_norm", *key)]["difference"] == pytest.approx(
        -comparisons.loc[("rings", "accuracy", *key)]["difference"]
    )
    assert summary["rings"] == pytest.approx(found.loc["rings", "accuracy", "quiet_star"]["value"])


def test_parts_of_a_task_have_the_accuracy_of_each_method_by_itself_and_no_more(folder: Path):
    """A task of one part has no such rows. The parts stand in their order, and neither compared nor in the summary."""
    found, comparisons, seeds, summary = compared(folder, list(WAYS), SEEDS)
    written = pd.read_csv(folder / "out/figures.csv")["task"]
    assert [task for task in written.unique() if "/" in task] == [f"animals/{part}" for part in ("2", "9", "10")]
    for name, n, groups in (("animals/2", 3, 3), ("animals/9", 3, 3), ("animals/10", 6, 6)):
        rows = found.loc[name]
        assert set(rows.index) == {("accuracy", method) for method in WAYS}
        for method, way in (("quiet_star", "thought"), ("no_thought", "no_thought")):
            side = answers(folder, method, way, task=name)
            expected = [2, n, groups, np.mean(side.sums.sum(1) / n), *mean_interval(side, SHARE)]
            assert rows.loc["accuracy", method].to_list() == pytest.approx(expected)
    for names in (comparisons.index.get_level_values("task"), seeds["task"], summary):
        assert not any("/" in name for name in names)


def test_what_is_compared_with_what(folder: Path):
    _, comparisons, _, _ = compared(folder, list(WAYS), SEEDS)
    figures = ["seeds", "n", "groups", "difference", "low", "high", "p_value", "share"]
    assert list(comparisons.columns) == figures and comparisons.index.is_unique
    mains = {*WAYS, "untrained/sampled", "untrained/mean16"} - {"before"}
    expected = {("quiet_star", other) for other in mains - {"quiet_star"}} | {(arm, "before") for arm in mains}
    expected |= {("quiet_star", "quiet_star/thoughts_off"), ("quiet_star/thoughts_off", "no_thought")}
    expected |= {(arm, f"{arm}/{way}") for arm in THINKING for way in ("swapped", "random")}
    expected |= {(f"{arm}/own_where_same_last", f"{arm}/same_last") for arm in THINKING}
    expected |= {(f"{arm}/thoughts_off", "before") for arm in (*THINKING, "pause", "untrained")}
    for task in ("rings", "animals"):
        assert set(comparisons.loc[task, "accuracy"].index) == expected


def test_differences_are_paired_and_positive_where_the_arm_is_better(folder: Path):
    _, rows, _, _ = compared(folder, list(WAYS), SEEDS)
    row = rows.loc["rings", "accuracy", "quiet_star", "quiet_star/swapped"]
    own, swapped, off = (answers(folder, "quiet_star", way) for way in ("thought", "swapped", "no_thought"))
    expected = difference(own, swapped, SHARE_DIFFERENCE)
    assert row[["difference", "low", "high"]].to_list() == pytest.approx(expected[:3])
    gain = difference(own, off, SHARE_DIFFERENCE)
    assert gain.low > 0 and row["share"] == pytest.approx(expected.value / gain.value)
    assert np.isnan(row["p_value"]) and (row["seeds"], row["n"], row["groups"]) == (2, 12, 6)
    assert np.isnan(rows.loc["rings", "accuracy", "no_policy", "no_policy/swapped"]["share"])  # no sure gain
    text = rows.loc["heldout", "loss", "quiet_star/thoughts_off", "before"]
    harmed = losses(folder, "quiet_star", "nll_no_thought"), losses(folder, "quiet_star", "nll_before")
    assert text[["difference", "low", "high"]].to_list() == pytest.approx(difference(harmed[1], harmed[0], None)[:3])
    rare = rows.loc["rings", "accuracy", "quiet_star/own_where_same_last", "quiet_star/same_last"]
    assert rare["n"] == 4  # of each seed


def test_one_run_has_p_values_and_the_summary_its_main_figures(folder: Path):
    figures, rows, _, summary = compared(folder, ["quiet_star", "before"], [2])
    assert rows["p_value"].notna().all() == (rows["groups"] >= 6).all()
    content, value = rows.loc["animals", "accuracy", "quiet_star", "quiet_star/swapped"], figures["value"]
    assert summary["animals"] == pytest.approx(value["animals", "accuracy", "quiet_star"])
    found = summary["content_animals"], summary["content_animals_low"]
    assert found == pytest.approx((content["difference"], content["low"]))
    gain = value["heldout", "loss", "before"] - value["heldout", "loss", "quiet_star"]
    assert summary["heldout_gain"] == pytest.approx(gain)
    gain = value["heldout", "loss_after_marker", "before"] - value["heldout", "loss_after_marker", "quiet_star"]
    assert summary["heldout_gain_after_marker"] == pytest.approx(gain, abs=1e-6)
    assert summary["base_harm"] < summary["base_harm_high"]
    assert (summary["thought_length"], summary["cost"]) == (6.0, 7.5)
    # no task can have the name of another figure
    assert {name for name in summary if not name.startswith(CONTENT)} <= {"animals", "rings", *NOT_TASKS}


def test_losses_with_thoughts_after_the_marker_alone(folder: Path, tmp_path: Path):
    """Against a loop over tokens. Where no text has the marker there are none."""
    figures, comparisons, _, _ = compared(folder, list(WAYS), SEEDS)
    for arm, method, way in (
        ("quiet_star", "quiet_star", "thought"),
        ("quiet_star/swapped", "quiet_star", "swapped"),
        ("quiet_star/thoughts_off", "quiet_star", "no_thought"),
        ("pause", "pause", "thought"),
        ("no_thought", "no_thought", "no_thought"),
        ("before", "before", "before"),
    ):
        by_seed = []
        for seed in SEEDS:
            tokens = pd.read_parquet(folder / f"perplexity/{method}-{seed}/tokens.parquet").to_dict("records")
            everywhere = way in ("no_thought", "before")
            losses = [
                token[f"nll_{way}"] if after or everywhere else token["nll_no_thought"]
                for after, token in zip(AFTER, tokens, strict=True)
            ]
            by_seed.append(sum(losses) / len(losses))
        assert figures.loc["heldout", "loss_after_marker", arm]["value"] == pytest.approx(np.mean(by_seed))
    value = figures["value"]["heldout", "loss_after_marker"]
    for other in ("no_thought", "pause", "quiet_star/swapped", "before"):
        row = comparisons.loc["heldout", "loss_after_marker", "quiet_star", other]
        assert (
            row["difference"] == pytest.approx(value[other] - value["quiet_star"], abs=1e-6)
            and row["low"] < row["high"]
        )
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("perplexity/*/tokens.parquet"):
        pd.read_parquet(path).assign(after_marker=False).to_parquet(path)
    without, _, _, _ = compared(tmp_path, list(WAYS), SEEDS)
    assert without.equals(figures.drop(index=("heldout", "loss_after_marker")))


def test_of_one_text_losses_have_no_intervals(folder: Path, tmp_path: Path):
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("perplexity/*/tokens.parquet"):
        pd.read_parquet(path).assign(text=0).to_parquet(path)
    figures, rows, _, summary = compared(tmp_path, ["quiet_star", "before"], [2])
    for table in (figures, rows):
        assert table.loc["heldout", ["low", "high"]].isna().all(axis=None)
        assert table.loc["rings", ["low", "high"]].notna().all(axis=None)
    assert summary["base_harm_high"] is None and np.isfinite([summary["base_harm"], summary["heldout_gain"]]).all()
    harm = rows.loc["heldout", "loss", "quiet_star/thoughts_off", "before"]["difference"]
    assert summary["base_harm"] == pytest.approx(-harm)


def test_a_run_without_thoughts_has_no_content(folder: Path):
    _, comparisons, _, summary = compared(folder, ["no_thought", "before"], [1])
    assert {pair[2:] for pair in comparisons.index} == {("no_thought", "before")}
    assert summary["content_rings"] is None
    assert summary["base_harm"] == pytest.approx(-summary["heldout_gain"])


def test_groups_that_were_not_asked_do_not_count(folder: Path):
    """Of each seed some groups have a `same_last` thought: all of them are groups of the arm."""
    found, comparisons, _, _ = compared(folder, ["quiet_star"], SEEDS)
    for seeds in (SEEDS, [1]):
        there = {GROUPS[i] for seed in seeds for i in range(len(GROUPS)) if i % 3 == seed % 2}
        found, comparisons, _, _ = compared(folder, ["quiet_star"], seeds)
        assert found.loc["rings", "accuracy", "quiet_star/same_last"]["groups"] == len(there) < 6 + (seeds == SEEDS)
        row = comparisons.loc["rings", "accuracy", "quiet_star/own_where_same_last", "quiet_star/same_last"]
        assert row["groups"] == len(there)


def test_one_arm_alone_is_compared_with_nothing(folder: Path):
    _, comparisons, _, summary = compared(folder, ["before"], [1])
    assert comparisons.empty and summary["heldout_gain"] is None and summary["rings"] is not None


def test_a_task_of_one_group_has_nothing_swapped(folder: Path, tmp_path: Path):
    """The other task keeps its swapped thoughts, and all other figures are what they were."""
    whole, _, _, _ = compared(folder, ["quiet_star", "no_policy"], SEEDS)
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    for path in tmp_path.glob("evaluate/*/predictions.parquet"):
        rows = pd.read_parquet(path)
        rows[(rows["task"] != "rings") | (rows["way"] != "swapped")].to_parquet(path)
    figures, comparisons, _, summary = compared(tmp_path, ["quiet_star", "no_policy"], SEEDS)
    gone = [key for key in whole.index if key[0] == "rings" and key[2].endswith("/swapped")]
    assert len(gone) == 6 and figures.equals(whole.drop(gone))
    assert not any(pair[3].endswith("/swapped") for pair in comparisons.index if pair[0] == "rings")
    assert summary["content_rings"] is None and summary["content_animals"] is not None


def test_arms_that_were_not_asked_the_same_or_are_missing(tmp_path: Path):
    for method in ("quiet_star", "pause"):
        write_run(tmp_path, method, 1)
    answered = tmp_path / "evaluate/pause-1/predictions.parquet"
    tokens = tmp_path / "perplexity/pause-1/tokens.parquet"
    rows = pd.read_parquet(answered)
    for path, other, message in (
        (answered, rows[rows["index"] > 0], "not asked the same questions"),
        (answered, rows[(rows["index"] > 0) | (rows["way"] != "no_thought")], "not asked the same questions"),
        (answered, rows[rows["task"] == "rings"], "not asked the same questions"),
        (answered, rows.assign(prompt="Well, " + rows["prompt"]), "not asked the same questions"),
        (answered, rows.assign(part="0" + rows["part"]), "not asked the same questions"),
        (answered, rows.drop(columns="group"), "predictions.parquet is missing or broken"),
        (tokens, pd.read_parquet(tokens).iloc[1:], "held-out texts are not those"),
        (tokens, pd.read_parquet(tokens).assign(after_marker=True), "held-out texts are not those"),
        (tokens, pd.read_parquet(tokens).drop(columns="after_marker"), "tokens.parquet is missing or broken"),
        (tokens, None, "tokens.parquet is missing or broken"),
    ):
        kept = path.read_bytes()
        path.unlink() if other is None else other.to_parquet(path)
        with pytest.raises(UserError, match=message):
            compared(tmp_path, ["quiet_star", "pause"], [1])
        path.write_bytes(kept)
