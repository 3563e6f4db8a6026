"""Presets: every combination is a run's parameters, and options that DVC can read."""

import itertools
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipeline import params, preset
from pipeline.errors import UserError

ROOT = Path(__file__).parent.parent
GROUPS = [[None, *sorted((ROOT / "pipeline/presets" / group).glob("*.yaml"))] for group in ("model", "data", "scale")]
COMBINATIONS = [
    [f"{path.parent.name}={path.stem}" for path in some if path] for some in itertools.product(*GROUPS) if any(some)
]


@pytest.fixture(autouse=True)
def in_root(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)


def printed(arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The `key=value` of each `-S`."""
    monkeypatch.setattr(sys, "argv", ["preset", *arguments])
    preset.main()
    words = capsys.readouterr().out.split()
    assert set(words[::2]) == {"-S"}
    return words[1::2]


@pytest.mark.parametrize("groups", COMBINATIONS, ids=" ".join)
def test_every_combination(groups: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    values = preset.options(groups)
    assert params.load(changes=values)
    shown = printed(groups, capsys, monkeypatch)
    read = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(shown)}  # DVC's own parser
    assert read == values


def test_there_are_presets():
    assert len(COMBINATIONS) >= 50
    assert {"model=scratch", "data=gsm8k", "scale=smoke"} <= set(preset.known())


def test_a_preset_sets_what_its_file_says():
    file = yaml.safe_load((ROOT / "pipeline/presets/scale/smoke.yaml").read_text())
    assert preset.options(["scale=smoke"])["train.steps"] == file["train"]["steps"]


@pytest.mark.parametrize("preset_name", [name for name in preset.known() if name.startswith("data=")])
def test_the_tasks_of_a_preset_are_there(preset_name: str):
    files = preset.options([preset_name])["tasks.files"]
    assert len(files) == 2 and all((ROOT / file).is_file() for file in files)


def test_values_may_follow_and_win():
    assert preset.options(["scale=smoke", "train.steps=7"])["train.steps"] == 7


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["data=nothing"], "data=nothing"),
        (["nonsense"], "nonsense"),
        (["model=../scale/smoke"], "model=../scale/smoke"),
        (["scale=smoke", "train.nothing=3"], "train.nothing"),
        (["scale=smoke", "train.steps=many"], "train.steps"),
        (["scale=smoke", "train.steps=0"], "train.steps"),
        (["scale=smoke", "train.steps"], "train.steps"),
    ],
)
def test_what_does_not_exist_is_refused(arguments: list[str], named: str):
    with pytest.raises(UserError, match=named) as error:
        preset.options(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("groups", [c for c in COMBINATIONS if any(g.startswith("data=") for g in c)][:8], ids=" ".join)
def test_root_puts_every_data_set_under_a_folder(groups: list[str]):
    values = preset.options(groups, root="/data/hub")
    plain = preset.options(groups)
    shipped = OmegaConf.load(params.PARAMS_FILE)
    assert values["tasks.root"] == "/data/hub" and "tasks.root" not in plain
    for split in ("pretrain", "train", "heldout"):
        name = f"corpus.hub.{split}.path"
        assert values[name] == f"/data/hub/{plain.get(name, shipped.corpus.hub[split].path)}"


@pytest.mark.parametrize("value", ["train.meta_token_text=a b", "corpus.hub.train.path=a,b", "train.meta_token_text="])
def test_a_value_that_would_not_reach_dvc_whole_is_refused(value: str):
    """The shell splits what is printed at spaces, and a comma is a list of values to `dvc exp run`."""
    with pytest.raises(UserError, match=value.partition("=")[0]):
        preset.options(["scale=smoke", value])


def test_a_root_with_a_space_is_refused():
    with pytest.raises(UserError, match="corpus.hub"):
        preset.options(["data=gsm8k"], root="/my data")


def test_as_a_command():
    command = [sys.executable, "-m", "pipeline.preset"]
    good = subprocess.run([*command, "scale=smoke"], capture_output=True, text=True, check=False)
    assert good.returncode == 0 and "-S train.steps=" in good.stdout
    bad = subprocess.run([*command, "scale=huge"], capture_output=True, text=True, check=False)
    assert bad.returncode == 1 and bad.stdout == ""
    assert bad.stderr.startswith("error: there is no preset scale=huge") and bad.stderr.count("\n") == 1
    usage = subprocess.run(command, capture_output=True, text=True, check=False)
    assert usage.returncode == 0 and "data=gsm8k" in usage.stdout
