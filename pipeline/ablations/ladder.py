"""Run rungs on a real model: `python -m pipeline.ablations.ladder [RUNG ...] [--model FOLDER] [--root FOLDER]`.

RUNG is a file (default: all of ladder/), FOLDER of --model a base model, of --root data sets in the hub's layout. Each
arm is a DVC experiment; what the comparison needs of it is kept in results/real/RUNG/METHOD-SEED. A second call does
only what is missing there or has other options, whatever the code: remove a folder to run its arm again. Writes
results/real/comparison.csv after each arm. If arms failed, their reasons are told and the exit code is 1.
"""

import tempfile
from functools import partial
from pathlib import Path

import pandas as pd
from dvc.api import DVCFileSystem

from pipeline import errors
from pipeline.ablations import experiments, rungs
from pipeline.ablations.grid import Arm, Workspace, git
from pipeline.errors import UserError
from pipeline.files import replacing, write_table
from pipeline.models.base import read_tokenizer
from pipeline.models.trained import load_trained
from pipeline.preset import options as preset
from pipeline.report.reading import read_json

OUT = Path("results/real")
BASES = Path(".dvc/tmp/bases")  # models that later rungs begin on


def main() -> None:
    parser = experiments.parser("python -m pipeline.ablations.ladder", __doc__)
    parser.add_argument("rungs", nargs="*", type=Path, metavar="RUNG", help="default: all of ladder/")
    parser.add_argument("--model", type=Path, help="the folder of a base model in place of the preset's")
    parser.add_argument("--root", type=Path, help="a folder with data sets in the hub's layout")
    options = experiments.parse(parser)
    paths = options.rungs or sorted(Path("ladder").glob("*.yaml"))
    every, workspace, failed, asked = {path.stem: rungs.read_rung(path) for path in paths}, Workspace(), {}, 0
    for name, rung in every.items():
        root = None if options.root is None else str(options.root.resolve())
        arms = _arms(workspace, name, rung, BASES if rung.base is not None else options.model, root)
        settings = {run: rungs.settings_of(arm, rung.base) for run, arm in arms.items()}
        done = rungs.kept(OUT / name, settings)
        if rung.base is not None and len(done) < len(arms):
            arms = _arms(workspace, name, rung, _base(rung.base), root)
        print(f"{name}: {len(arms)} arms, {len(done)} of which {OUT / name} has", flush=True)
        write = partial(_write, name, list(settings), settings)
        write()
        missing = [arm for run, arm in arms.items() if run not in done]
        found = experiments.run(missing, options.jobs, done=write)
        failed |= found
        asked += len(arms)
    experiments.check_done(failed, asked)
    print(f"all {asked} arms are done: {OUT / 'comparison.csv'}")


def _arms(workspace: Workspace, name: str, rung: rungs.Rung, model: Path | None, root: str | None) -> dict[str, Arm]:
    """The rung's arms, METHOD-SEED, on the base model in the folder ``model`` (None: the preset's)."""
    words = list(rung.options) if model is None else [*rung.options, f"base_model.path={model.resolve()}"]
    arms = {}
    for run in rung.arms:
        method, _, seed = run.rpartition("-")
        values = preset.options([*words, f"arms.methods=[{method}]", f"arms.seeds=[{seed}]"], root)
        arms[run] = workspace.arm(f"{name}-{run}", {"rung": name, "run": run}, preset.words(values))
    return arms


def _write(name: str, runs: list[str], settings: dict[str, str], arm: Arm | None = None) -> None:
    """Keep a finished ``arm``, and write the rung's rows of the table anew, in the place of those that it had."""
    if arm is not None:
        run = arm.about["run"]
        rungs.keep(arm, run, settings[run], OUT / name / run)
    path, there = OUT / "comparison.csv", rungs.kept(OUT / name, settings)
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=rungs.COLUMNS)
    rows = rungs.comparison(name, OUT / name, [run for run in runs if run in there])
    parts = [part for part in (table[table["rung"] != name], rows) if len(part)]
    if parts:
        write_table(path, pd.concat(parts, ignore_index=True))


def _base(arm: str) -> Path:
    """The folder of the plain model that the ``arm`` (RUNG/METHOD-SEED) of an earlier rung has trained.

    It is that of the experiment of which the arm was kept. Raises UserError if the arm was not kept, or the experiment
    is not in this repository: what is kept of an arm holds no weights.
    """
    rung, _, run = arm.partition("/")
    kept, again = OUT / arm, f"run `python -m pipeline.ablations.ladder ladder/{rung}.yaml`"
    if not (kept / rungs.ABOUT).exists():
        raise UserError(f"no experiment has trained {arm}: {again}")
    commit = read_json(kept / rungs.ABOUT)["experiment"]
    try:
        git("cat-file", "-e", commit)
    except UserError as error:
        raise UserError(
            f"this repository has no experiment with the weights of {arm}: remove {kept}, {again}"
        ) from error
    out = (BASES / f"{rung}-{run}-{commit[:8]}").resolve()
    if not out.exists():
        with replacing(out) as folder, tempfile.TemporaryDirectory(dir=out.parent) as scratch:
            trained = Path(scratch) / run
            DVCFileSystem(rev=commit).get(f"models/trained/{run}", str(trained), recursive=True)
            load_trained(trained).base.save_pretrained(folder)
            read_tokenizer(trained).save_pretrained(folder)
    return out


if __name__ == "__main__":
    errors.run(main)
