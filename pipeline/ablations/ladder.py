"""Run rungs on a real model: `python -m pipeline.ablations.ladder [RUNG ...] [--model FOLDER] [--root FOLDER]`.

RUNG is a file (default: all of ladder/), FOLDER of --model a base model, of --root data sets in the hub's layout. Each
arm is a DVC experiment; what the comparison needs of it is kept in results/real/RUNG/METHOD-SEED. A second call does
only what is missing there or has other options, whatever the code: remove a folder to run its arm again. Writes
results/real/comparison.csv after each arm. If arms failed, their reasons are told and the exit code is 1.
"""

from functools import partial
from pathlib import Path

import pandas as pd

from pipeline import errors
from pipeline.ablations import experiments, rungs
from pipeline.ablations.grid import Arm, Workspace, check_given
from pipeline.files import write_table
from pipeline.preset import options as preset

OUT = Path("results/real")


def main() -> None:
    parser = experiments.parser("python -m pipeline.ablations.ladder", __doc__)
    parser.add_argument("rungs", nargs="*", type=Path, metavar="RUNG", help="default: all of ladder/")
    parser.add_argument("--model", type=Path, help="the folder of a base model in place of the preset's")
    parser.add_argument("--root", type=Path, help="a folder with data sets in the hub's layout")
    options = experiments.parse(parser)
    check_given(options.model, options.root)
    paths = options.rungs or sorted(Path("ladder").glob("*.yaml"))
    workspace, every, failed = Workspace(), {}, {}
    for path in paths:  # all of them first: a mistake in a later one is told before hours of training
        rung, name = rungs.read_rung(path), path.stem
        words = list(rung.options)
        if options.model is not None:
            words.append(f"base_model.path={options.model.resolve()}")
        root = None if options.root is None else str(options.root.resolve())
        arms = every[name] = {}
        for run in rung.arms:
            method, _, seed = run.rpartition("-")
            values = preset.options([*words, f"arms.methods=[{method}]", f"arms.seeds=[{seed}]"], root)
            arms[run] = workspace.arm(f"{name}-{run}", {"rung": name, "run": run}, preset.words(values))
    for name, arms in every.items():
        settings = {run: rungs.settings_of(arm) for run, arm in arms.items()}
        done = rungs.kept(OUT / name, settings)
        print(f"{name}: {len(arms)} arms, {len(done)} of which {OUT / name} has", flush=True)
        for run in done:
            if names := rungs.changed(arms[run], OUT / name / run):
                told = f"warning: {OUT / name / run} was made with another {', '.join(names)}"
                print(f"{told}: remove the folder to run it again", flush=True)
        write = partial(_write, name, list(settings), settings)
        write()
        missing = [arm for run, arm in arms.items() if run not in done]
        failed |= experiments.run(missing, options.jobs, done=write)
    asked = sum(map(len, every.values()))
    experiments.check_done(failed, asked)
    print(f"all {asked} arms are done: {OUT / 'comparison.csv'}")


def _write(name: str, runs: list[str], settings: dict[str, str], arm: Arm | None = None) -> None:
    """Keep a finished ``arm``, and write the rung's rows of the table anew, in the place of those that it had."""
    if arm is not None:
        run = arm.about["run"]
        rungs.keep(arm, run, settings, OUT / name)
    path, there = OUT / "comparison.csv", rungs.kept(OUT / name, settings)
    table = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=rungs.COLUMNS)
    rows = rungs.comparison(name, OUT / name, [run for run in runs if run in there])
    parts = dict(iter(table.groupby("rung", sort=False))) | ({name: rows} if len(rows) else {})
    if parts:
        write_table(path, pd.concat(parts.values(), ignore_index=True))


if __name__ == "__main__":
    errors.run(main)
