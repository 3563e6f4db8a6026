"""Rungs: what is kept of an arm, and the table that compares those that are finished."""

import json
import shutil
import subprocess
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from pipeline import params
from pipeline.ablations import ladder, rungs
from pipeline.ablations.grid import Arm, Workspace
from pipeline.errors import UserError
from pipeline.evaluation.arms import read_arms
from pipeline.evaluation.compare import write_compare
from pipeline.evaluation.statistics import Totals, difference
from pipeline.files import write_table
from pipeline.params import Arms
from pipeline.preset import options as preset
from tests.chaos.kills import call
from tests.evaluation.test_compare import write_run

ROOT = Path(__file__).parents[2]
TEXTS = 20
WAYS = {"quiet_star": ("", "/swapped", "/random", "/thoughts_off"), "no_thought": ("",), "before": ()}


def losses(run: str, way: str) -> np.ndarray:
    """Of each text, in nats, the sum over ten tokens."""
    return np.random.default_rng([len(run), len(way), int(run[-1])]).normal(30 - len(way), 1, TEXTS)


def keep(folder: Path, run: str, weights: str = "abc", tokens: float = 10.0) -> None:
    method = run.rpartition("-")[0]
    arms = {f"{method}{way}": losses(run, way) for way in WAYS[method]} | {"before": np.full(TEXTS, 31.0)}
    tables = [
        pd.DataFrame({"task": "heldout", "measure": "loss", "arm": arm, "sum": sums, "weight": tokens})
        for arm, sums in arms.items()
    ]
    right = pd.DataFrame({"task": "csqa", "measure": "accuracy", "arm": method, "sum": [1.0, 0, 1, 1], "weight": 1.0})
    (folder / run).mkdir(parents=True)
    pd.concat([*tables, right]).to_parquet(folder / run / rungs.TOTALS)
    (folder / run / rungs.ABOUT).write_text(json.dumps({"settings": "s", "weights": weights}))


def test_differences_are_paired_by_seed_and_text(tmp_path: Path):
    runs = ["quiet_star-1", "quiet_star-2", "quiet_star-3", "no_thought-1", "no_thought-2", "before-1"]
    for run in runs:
        keep(tmp_path, run)
    table = rungs.comparison("a", tmp_path, runs)
    assert list(table.columns) == rungs.COLUMNS and set(table["rung"]) == {"a"} and set(table["weights"]) == {"abc"}
    own = table[table["difference_to"].isna()].set_index(["measure", "method", "seed"])
    assert own.loc[("heldout loss", "quiet_star", 2), "value"] == pytest.approx(losses("quiet_star-2", "").mean() / 10)
    assert own["difference"].isna().all() and (own["low"] <= own["value"]).all() and (own["value"] <= own["high"]).all()
    found = table.set_index(["measure", "method", "difference_to", "seed"])
    for against, other, seeds in (
        ("no_thought", lambda seed: losses(f"no_thought-{seed}", ""), (1, 2)),
        ("quiet_star/swapped", lambda seed: losses(f"quiet_star-{seed}", "/swapped"), (1, 2, 3)),
        ("before", lambda _: np.full(TEXTS, 31.0), (1, 2, 3)),  # which has no seeds
    ):
        rows = found.loc["heldout loss", "quiet_star", against]
        assert list(rows.index) == [*seeds, "all"]
        own, theirs = (
            np.stack([of(seed) for seed in seeds]) for of in (lambda s: losses(f"quiet_star-{s}", ""), other)
        )
        expected = difference(*(Totals(sums, np.full(sums.shape, 10.0)) for sums in (theirs, own)), None)
        assert rows.loc["all", ["difference", "low", "high"]].to_list() == pytest.approx(expected[:3])
        assert rows.loc["all", "value"] == pytest.approx(own.mean() / 10) and rows.loc["all", "n"] == 10 * TEXTS
        by_seed = (theirs - own).mean(1) / 10
        assert rows["difference"].to_list()[:-1] == pytest.approx(by_seed.tolist())
    assert ("heldout loss", "quiet_star/thoughts_off", "before", "all") in found.index  # the harm
    assert ("heldout loss", "quiet_star", "quiet_star/random", "all") in found.index
    accuracy = found.loc["csqa accuracy", "quiet_star", "no_thought"].loc["all"]
    assert accuracy["value"] == 0.75 and accuracy["difference"] == 0 and accuracy["low"] < 0 < accuracy["high"]
    alone = rungs.comparison("a", tmp_path, ["before-1"])
    assert alone["difference"].isna().all() and alone["value"].to_list() == pytest.approx([3.1, 0.75])


def test_arms_that_cannot_be_compared(tmp_path: Path):
    keep(tmp_path, "quiet_star-1")
    keep(tmp_path, "no_thought-1", tokens=11.0)
    with pytest.raises(UserError, match="were not asked the same of heldout: remove one"):
        rungs.comparison("a", tmp_path, ["quiet_star-1", "no_thought-1"])
    keep(tmp_path, "no_thought-2", weights="other")
    with pytest.raises(UserError, match="arms of 2 base models: remove the folders of one"):
        rungs.comparison("a", tmp_path, ["quiet_star-1", "no_thought-2"])


def test_seeds_with_thoughts_of_the_same_end_at_other_questions(tmp_path: Path):
    """Each seed's rows are of its own groups, and those of all seeds are those of `compare`."""
    write = tmp_path / "results"
    for seed in (1, 2):
        write_run(write, "quiet_star", seed)
        table = read_arms(Arms(["quiet_star"], [seed]), write / "evaluate", write / "perplexity")
        (tmp_path / f"kept/quiet_star-{seed}").mkdir(parents=True)
        rungs.totals_table(table).to_parquet(tmp_path / f"kept/quiet_star-{seed}" / rungs.TOTALS)
        about = json.dumps({"settings": "s", "weights": "abc"})
        (tmp_path / f"kept/quiet_star-{seed}" / rungs.ABOUT).write_text(about)
    names = ["measure", "method", "difference_to", "seed"]
    found = rungs.comparison("a", tmp_path / "kept", ["quiet_star-1", "quiet_star-2"]).set_index(names)
    for seeds, name in (([1, 2], "all"), ([1], 1), ([2], 2)):
        out = (tmp_path / f"out{name}", tmp_path / "summary.json")
        write_compare(Arms(["quiet_star"], seeds), write / "evaluate", write / "perplexity", *out)
        rows = pd.read_csv(out[0] / "comparisons.csv").set_index(["task", "measure", "arm", "against"])
        pair = ("quiet_star/own_where_same_last", "quiet_star/same_last")
        expected = rows.loc["rings", "accuracy", *pair][["difference", "low", "high"]].to_list()
        row = found.loc["rings accuracy", *pair, name]
        assert row[["difference", "low", "high"]].to_list() == pytest.approx(expected, abs=1e-6)


@pytest.mark.slow
def test_what_is_kept_of_an_arm_is_read_from_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Not from the workspace, where other arms have run since. Each arm's losses are those of `compare`."""
    monkeypatch.chdir(tmp_path)
    call(tmp_path, "git", "init", "-q")
    call(tmp_path, "dvc", "init", "-q")
    for seed in (2, 1):  # the other arm's, of which nothing is asked
        write_run(Path("results"), "quiet_star", seed)
        log = Path(f"results/train/quiet_star-{seed}")
        log.mkdir(parents=True)
        (log / "metrics.json").write_text('{"base_weights": "abc"}')
        (log / "steps.csv").write_text("step\n1\n")
        tables = Path(f"results/perplexity/quiet_star-{seed}/tables")
        tables.mkdir()
        (tables / "choices.csv").write_text(f"chooser\nmarker {seed}\n")
    Path("params.yaml").write_text("arms: {}\n")
    call(tmp_path, "git", "add", "-A", "-f")
    call(tmp_path, "git", "commit", "-q", "-m", "an experiment")
    call(tmp_path, "git", "update-ref", "refs/exps/aa/bb/arm", "HEAD")
    shutil.rmtree("results")
    Path("params.yaml").unlink()
    call(tmp_path, "git", "add", "-A")
    call(tmp_path, "git", "commit", "-q", "-m", "nothing is left")
    arm = Arm("arm", {}, {}, "", "aabb", "aabb")
    keep(Path("other"), "no_thought-2", weights="def")
    with pytest.raises(
        UserError, match="quiet_star-1 began with the weights abc and no_thought-2, .* with def: remove"
    ):
        rungs.keep(arm, "quiet_star-1", {"quiet_star-1": "s", "no_thought-2": "s"}, Path("other"))
    assert [path.name for path in Path("other").iterdir()] == ["no_thought-2"]
    rungs.keep(arm, "quiet_star-1", {"quiet_star-1": "s"}, Path())
    names = ["about.json", "choices.csv", "params.yaml", "steps.csv", "totals.parquet"]
    assert sorted(path.name for path in Path("quiet_star-1").iterdir()) == names
    assert Path("quiet_star-1/params.yaml").read_text() == "arms: {}\n"
    assert Path("quiet_star-1/choices.csv").read_text() == "chooser\nmarker 1\n"
    assert json.loads(Path("quiet_star-1/about.json").read_text()) == {
        "settings": "s",
        "weights": "abc",
        "commit": "aabb",
    }
    write_run(Path("again"), "quiet_star", 1)
    found = read_arms(Arms(["quiet_star"], [1]), Path("again/evaluate"), Path("again/perplexity"))
    table = pd.read_parquet("quiet_star-1/totals.parquet").set_index(["task", "measure", "arm"])
    for (task, measure), by_arm in found.items():
        for arm, side in by_arm.items():
            rows = table.loc[task, measure, arm]
            assert (
                rows["sum"].to_list() == side.sums[0].tolist() and rows["weight"].to_list() == side.weights[0].tolist()
            )


def test_an_arm_is_kept_while_its_options_are_the_same(tmp_path: Path):
    keep(tmp_path, "quiet_star-1")
    assert rungs.kept(tmp_path, {"quiet_star-1": "s", "quiet_star-2": "s"}) == ["quiet_star-1"]
    assert rungs.kept(tmp_path, {"quiet_star-1": "t"}) == []

    def settings(*words: str, root: str | None = None) -> str:
        return rungs.settings_of(Arm("", {}, preset.options(list(words), root), "", "", ""))

    one = settings("model=smollm2-135m", "base_model.path=/here/model")
    assert one == settings("model=smollm2-135m", "base_model.path=/there/model")  # wherever the model is
    assert one != settings("model=smollm2-135m", "train.steps=7")
    gsm8k = settings("data=gsm8k")
    assert gsm8k == settings("data=gsm8k", root="/here") == settings("data=gsm8k", root="/there")  # and the data


def test_what_params_yaml_said_otherwise_when_an_arm_was_kept(tmp_path: Path):
    """Not where its model and data were, nor what changes no figure; nothing is known of an arm kept without it."""
    arm = Arm("", {}, preset.options(["model=smollm2-135m", "base_model.path=/here"]), "", "", "")
    assert rungs.changed(arm, tmp_path) == []
    then = asdict(params.load(changes=arm.params | {"base_model.path": "/there", "report.passages": 77}))
    for other, names in ((then, []), (then | {"train": then["train"] | {"weight_decay": 0.5}}, ["train.weight_decay"])):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(other))
        assert rungs.changed(arm, tmp_path) == names


def test_finished_arms_reach_the_table_and_a_second_call_runs_what_is_missing(tmp_path: Path, monkeypatch):
    """One arm fails, is named, and is tried again alone; other rungs' rows stay."""
    ran, broken = [], {"no_thought-1"}

    def run(arms: list[Arm], jobs: int, done: object) -> dict[str, str]:
        ran.extend(arm.about["run"] for arm in arms)
        for arm in arms:
            if arm.about["run"] not in broken:
                done(arm)
        return {arm.name: "it breaks" for arm in arms if arm.about["run"] in broken}

    def made(arm: Arm, name: str, settings: dict[str, str], rung: Path) -> None:
        keep(rung, name)
        (rung / name / rungs.ABOUT).write_text(json.dumps({"settings": settings[name], "weights": "abc"}))

    monkeypatch.setattr(ladder.experiments, "run", run)
    monkeypatch.setattr(rungs, "keep", made)
    monkeypatch.setattr(Workspace, "__init__", lambda self: vars(self).update(baseline="b", snapshot="b", _hashes=""))
    monkeypatch.setattr(ladder, "OUT", tmp_path / "real")
    files = []
    for name, arms in (("one", ["quiet_star-1", "no_thought-1"]), ("two", ["quiet_star-2"])):
        files.append(tmp_path / f"{name}.yaml")
        files[-1].write_text(yaml.safe_dump({"arms": arms, "options": ["model=smollm2-135m", "data=textbooks"]}))
    monkeypatch.setattr("sys.argv", ["ladder", *map(str, files), "--root", str(tmp_path)])
    with pytest.raises(UserError, match="1 of 3 arms failed: one-no_thought-1-.* .it breaks.. Put it right"):
        ladder.main()
    table = pd.read_csv(tmp_path / "real/comparison.csv")
    assert ran == ["quiet_star-1", "no_thought-1", "quiet_star-2"] and set(table["rung"]) == {"one", "two"}
    assert "no_thought" not in set(table["method"])
    broken.clear()
    ladder.main()
    again = pd.read_csv(tmp_path / "real/comparison.csv")
    assert ran[3:] == ["no_thought-1"] and "no_thought" in set(again["difference_to"]) and len(again) > len(table)
    (tmp_path / "later.yaml").write_text(yaml.safe_dump({"arms": ["pause-1"], "options": ["train.stpes=5"]}))
    (tmp_path / "first.yaml").write_text(yaml.safe_dump({"arms": ["pause-1"]}))
    with monkeypatch.context() as patch:
        patch.setattr("sys.argv", ["ladder", str(tmp_path / "first.yaml"), str(tmp_path / "later.yaml")])
        with pytest.raises(UserError, match="there is no key train.stpes"):
            ladder.main()
    ladder.main()
    assert len(ran) == 4 and pd.read_csv(tmp_path / "real/comparison.csv").equals(again)


@pytest.mark.parametrize(
    "rung, told",
    [
        ({"arms": []}, "must name at least one"),
        ({"arms": ["pause-1", "pause-1"]}, "none twice"),
        ({"arms": ["pauses-1"]}, "pauses-1 is no arm: write METHOD-SEED"),
        ({"arms": ["pause"]}, "pause is no arm"),
        ({"arms": ["pause-01"]}, "pause-01 is no arm"),  # DVC's folder would have another name than the table's
        ({"arm": ["pause-1"]}, "there is no key arm"),
    ],
)
def test_a_file_that_is_no_rung(rung: dict, told: str, tmp_path: Path):
    with pytest.raises(UserError, match="is missing"):
        rungs.read_rung(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(rung))
    with pytest.raises(UserError, match=told):
        rungs.read_rung(tmp_path / "a.yaml")


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "results/real").glob("?-*/")))
def test_the_committed_table_is_what_the_kept_arms_make(name: str, tmp_path: Path):
    folder = ROOT / "results/real" / name
    runs = [run for run in rungs.read_rung(ROOT / f"ladder/{name}.yaml").arms if (folder / run).is_dir()]
    write_table(tmp_path / "table.csv", rungs.comparison(name, folder, runs))
    found, table = pd.read_csv(tmp_path / "table.csv"), pd.read_csv(folder.parent / "comparison.csv")
    rows = table[table["rung"] == name].reset_index(drop=True)  # of several rungs: seeds may have become words
    pd.testing.assert_frame_equal(found.astype({"seed": str}), rows.astype({"seed": str}))


@pytest.mark.parametrize("option, told", [("--model", "there is no model at"), ("--root", "there are no data sets at")])
def test_a_folder_that_does_not_exist_is_refused_before_any_arm(option: str, told: str, tmp_path: Path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["ladder", option, str(tmp_path / "none")])
    with pytest.raises(UserError, match=told):
        ladder.main()


@pytest.mark.parametrize("path", sorted((ROOT / "ladder").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_rungs_are_runs(path: Path):
    rung = rungs.read_rung(path)
    values = preset.options([*rung.options, "base_model.path=/model"], "/data")
    assert params.load(changes=values).train.clip == "apart" and preset.words(values)


def test_git_keeps_what_is_kept_of_an_arm():
    """Without the sums a second call in another clone would train every arm again."""
    kept = [f"results/real/rung/quiet_star-1/{name}" for name in (rungs.TOTALS, rungs.ABOUT)]
    ignored = subprocess.run(["git", "check-ignore", *kept], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ignored.stdout == ""
