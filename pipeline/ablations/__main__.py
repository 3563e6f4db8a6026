"""Run a grid of experiments and put their figures side by side: `python -m pipeline.ablations [GRID] [--jobs N]`.

GRID (default: ablations.yaml) lists thought lengths, lookaheads, methods and seeds. The arms share corpus, tokens and
base model through DVC's cache, and an arm that an earlier call has finished is not run again. Writes results/GRID.csv,
.md and .svg. If arms failed, all three files name them and the exit code is 1.
"""

import argparse
from pathlib import Path

from pipeline import errors
from pipeline.ablations import experiments, results
from pipeline.ablations.grid import arms, read_grid
from pipeline.errors import UserError
from pipeline.files import replacing, write_table


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", type=Path, default=Path("ablations.yaml"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time (default: %(default)s)")
    options = parser.parse_args()
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}, but must be at least 1")
    grid = read_grid(options.grid)
    every = arms(grid)
    print(f"{len(every)} arms", flush=True)
    failed = experiments.run(every, options.jobs, tell=lambda line: print(line, flush=True))

    stem = Path("results") / options.grid.stem
    rows = results.table(every, failed)
    seeds = f"seed {grid.seeds[0]}" if len(grid.seeds) == 1 else f"seeds {', '.join(map(str, grid.seeds))}"
    about = f"`python -m pipeline.ablations {options.grid}` on commit {every[0].baseline[:7]}, {seeds}. "
    write_table(stem.with_suffix(".csv"), rows)
    results.write_figure(rows, stem.with_suffix(".svg"))
    with replacing(stem.with_suffix(".md")) as part:
        page = results.in_words(rows, about + "Brackets are 95 % intervals.", stem.with_suffix(".svg"))
        part.write_text(page, encoding="utf-8")
    if failed:
        reasons = "; ".join(f"{name} ({reason})" for name, reason in failed.items())
        raise UserError(f"{len(failed)} of {len(every)} arms failed: {reasons}. Put it right and run this again")
    print(f"all {len(every)} arms are done: {stem}.csv, .md and .svg")


if __name__ == "__main__":
    errors.run(main)
