"""Run a grid of experiments and put their figures side by side: `python -m pipeline.ablations [GRID] [--jobs N]`.

GRID (default: ablations.yaml) lists thought lengths, lookaheads, methods and seeds. The arms share corpus, tokens and
base model through DVC's cache. Writes results/GRID.csv, after each arm, and .md and .svg. An arm that has rows in
results/GRID.csv with the same settings is not run again, whatever the code: delete the file after a change of the
method. If arms failed, all three files name them and the exit code is 1.
"""

from pathlib import Path

from pandas import DataFrame

from pipeline import errors
from pipeline.ablations import experiments, results
from pipeline.ablations.grid import Arm, arms, read_grid
from pipeline.files import replacing, write_table


def main() -> None:
    parser = experiments.parser("python -m pipeline.ablations", __doc__)
    parser.add_argument("grid", nargs="?", type=Path, default=Path("ablations.yaml"), help="default: %(default)s")
    options = experiments.parse(parser)
    grid = read_grid(options.grid)
    every, stem = arms(grid), Path("results") / options.grid.stem
    kept = results.kept(stem.with_suffix(".csv"), every)
    missing = [arm for arm in every if arm.settings not in set(kept["settings"])]
    there = len(every) - len(missing)
    print(f"{len(every)} arms, {there} of which {stem}.csv has", flush=True)
    done: dict[str, DataFrame] = {}

    def add(arm: Arm) -> None:
        """Write the table now, as the next arm takes long."""
        done[arm.name] = results.figures_of(arm)
        write_table(stem.with_suffix(".csv"), results.table(every, kept, done, failed={}))

    failed = experiments.run(missing, options.jobs, done=add)
    rows = results.table(every, kept, done, failed)
    seeds = f"seed {grid.seeds[0]}" if len(grid.seeds) == 1 else f"seeds {', '.join(map(str, grid.seeds))}"
    earlier = f" ({there} of {len(every)} arms on earlier ones)" if there else ""
    about = f"`python -m pipeline.ablations {options.grid}` on commit {every[0].baseline[:7]}{earlier}, {seeds}. "
    write_table(stem.with_suffix(".csv"), rows)
    results.write_figure(rows, stem.with_suffix(".svg"))
    with replacing(stem.with_suffix(".md")) as part:
        page = results.in_words(rows, about + "Brackets are 95 % intervals.", stem.with_suffix(".svg"))
        part.write_text(page, encoding="utf-8")
    experiments.check_done(failed, len(every))
    print(f"all {len(every)} arms are done: {stem}.csv, .md and .svg")


if __name__ == "__main__":
    errors.run(main)
