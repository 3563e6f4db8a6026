"""The graph in dvc.yaml: a stage depends on exactly what it imports, and its outputs are kept somewhere."""

import ast
import subprocess
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from pipeline.resume import closure

ROOT = Path(__file__).parents[1]
STAGES: dict[str, dict] = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
NAMES = ("__init__", "params", "typed_yaml", "errors")
CANNOT_CHANGE_OUTPUTS = {f"pipeline/{name}.py" for name in NAMES}
AFTER_TRAINING = {"evaluate", "compare", "chain_of_thought", "perplexity", "report", "release"}
ARMS = {"train", "evaluate", "perplexity"}  # stages that run for each of them
ALWAYS = "inputs"  # has no dependencies, as it always runs
RUN = "${arms.methods[0]}-${arms.seeds[0]}"


def code_deps(stage: dict) -> set[str]:
    paths = [ROOT / dep for dep in stage["deps"] if dep.startswith(("pipeline", "stages"))]
    assert all(path.exists() for path in paths)
    files = [f for path in paths for f in (path.rglob("*") if path.is_dir() else [path]) if f.is_file()]
    return {str(f.relative_to(ROOT)) for f in files if "__pycache__" not in f.parts}


def outputs(stage: dict) -> dict[str, bool]:
    """The outputs by path, and whether DVC caches them."""
    entries = [*stage.get("outs", []), *stage.get("metrics", [])]
    named = [entry if isinstance(entry, dict) else {entry: {}} for entry in entries]
    return {path: options.get("cache", True) for entry in named for path, options in entry.items()}


def test_the_closure_finds_what_is_known_to_be_imported():
    names = {str(path.relative_to(ROOT)) for path in closure(ROOT / "stages/perplexity.py")}
    assert {"pipeline/evaluation/statistics.py", "pipeline/thought/views.py", "pipeline/data/spans.py"} <= names
    assert "pipeline/training/quiet_star/trainer.py" not in names


def holds_code(path: Path) -> bool:
    """Whether a file has more than a docstring; most __init__ files have no more."""
    return any(not isinstance(node, ast.Expr) for node in ast.parse(path.read_text()).body)


@pytest.mark.parametrize("name", [name for name in STAGES if name != ALWAYS])
def test_a_stage_depends_on_the_code_that_it_imports_and_on_other_files_beside_it(name: str):
    """A template changes what the code writes. On no other code, unless the whole folder is named."""
    closed = closure(ROOT / f"stages/{name}.py")
    imported = {str(path.relative_to(ROOT)) for path in filter(holds_code, closed)} - CANNOT_CHANGE_OUTPUTS
    packages = {path.parent for path in closed} - {ROOT / "pipeline", ROOT / "stages"}
    beside = {f for folder in packages for f in folder.iterdir() if f.is_file() and f.suffix not in (".py", ".pyc")}
    assert imported | {str(f.relative_to(ROOT)) for f in beside} <= code_deps(STAGES[name])
    assert {dep for dep in STAGES[name]["deps"] if dep.endswith(".py")} <= imported
    folders = [dep for dep in STAGES[name]["deps"] if dep.startswith("pipeline") and (ROOT / dep).is_dir()]
    assert all(any(path.startswith(f"{folder}/") for path in imported) for folder in folders)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_runs_its_own_module_with_parameters_that_exist(name: str):
    arguments = " ${item.method} ${item.seed}" if name in ARMS else ""
    assert STAGES[name]["cmd"] == f"exec python -m stages.{name}{arguments}"
    config = OmegaConf.load(ROOT / "params.yaml")
    for key in STAGES[name].get("params", []):
        section, _, last = key.rpartition(".")
        assert last in (OmegaConf.select(config, section) if section else config)


def test_an_output_is_in_the_cache_or_in_git_never_both():
    cached = {path: is_cached for stage in STAGES.values() for path, is_cached in outputs(stage).items()}
    assert not any("metrics" in stage for name, stage in STAGES.items() if name != "compare")  # plain `dvc exp show`
    command = ["git", "check-ignore", "--stdin"]
    listed = subprocess.run(command, cwd=ROOT, input="\n".join(cached), capture_output=True, text=True, check=True)
    assert set(listed.stdout.splitlines()) == {path for path, is_cached in cached.items() if is_cached}


def test_every_data_dependency_is_another_stages_output():
    made = {path.replace("${item.method}-${item.seed}", RUN) for stage in STAGES.values() for path in outputs(stage)}
    for name, stage in STAGES.items():
        needed = [dep for dep in stage.get("deps", []) if not dep.startswith(("pipeline", "stages")) and dep != "tasks"]
        for dep in (dep.replace("${item.method}-${item.seed}", RUN) for dep in needed):
            assert {dep, str(Path(dep).parent)} & made or any(path.startswith(f"{dep}/") for path in made), (name, dep)


def reruns(changed: str) -> set[str]:
    """The stages that run again if this parameter or file changes."""
    ran: set[str] = set()
    dirty = {changed}
    for _ in STAGES:
        for name, stage in STAGES.items():
            watched = [*stage.get("params", []), *stage.get("deps", [])]
            watched = [path.replace(RUN, "${item.method}-${item.seed}") for path in watched]
            if any(d == w or d.startswith((f"{w}.", f"{w}/")) or w.startswith(f"{d}/") for d in dirty for w in watched):
                ran.add(name)
                dirty |= set(outputs(stage))
    return ran


@pytest.mark.parametrize(
    "changed, expected",
    [
        ("train.lookahead", {"train", *AFTER_TRAINING}),
        ("arms.seeds", {"compare", "report", "release"}),  # and each new arm, as DVC adds it
        ("tasks.files", {"tasks", *AFTER_TRAINING} - {"perplexity"}),
        ("chain_of_thought.samples", {"chain_of_thought", "report", "release"}),
        ("report.passages", {"report"}),
        ("evaluate.questions", {"evaluate", "compare", "report", "release"}),
        ("perplexity.texts", {"perplexity", "compare", "report", "release"}),
        ("base_model.scratch.steps", {"base_model", "train", *AFTER_TRAINING}),
        ("base_model.path", set(STAGES) - {"corpus", "tasks", ALWAYS}),
        ("corpus.seed", set(STAGES) - {ALWAYS}),
        ("pipeline/report/page.html.j2", {"report", "release"}),
        ("pipeline/training/quiet_star/probe.py", {"train", *AFTER_TRAINING}),
        ("pipeline/thought/step.py", {"train", *AFTER_TRAINING}),
        ("data/inputs/launcher.json", {"train", *AFTER_TRAINING}),
        ("data/inputs/tasks.json", {"tasks", *AFTER_TRAINING} - {"perplexity"}),
        ("pipeline/preset/options.py", set()),
    ],
)
def test_what_a_change_makes_run_again(changed: str, expected: set[str]):
    assert reruns(changed) == expected


def test_every_plot_shows_a_file_that_is_written():
    plots = yaml.safe_load((ROOT / "results/dvc.yaml").read_text())["plots"]
    files = {f"results/{path}" for plot in plots for options in plot.values() for path in options["y"]}
    made = {path.replace("${item.method}-${item.seed}", RUN) for stage in STAGES.values() for path in outputs(stage)}
    made |= {"results/speed"}
    assert {path for path in files if not {path, *map(str, Path(path).parents)} & made} == set()


def test_the_expensive_stage_that_arms_share_is_in_the_run_cache():
    """DVC leaves out of it a stage with an output outside the cache: each arm of a grid would pretrain anew."""
    assert all(outputs(STAGES["base_model"]).values())
