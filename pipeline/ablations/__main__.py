"""Run a grid of experiments and put their figures side by side: `python -m pipeline.ablations [GRID] [--jobs N]`.

GRID (ablations.yaml if it is not given) names thought lengths, lookaheads, methods and seeds. The arms share corpus,
tokens and base model through DVC's cache; what an earlier call has finished is not run again. Writes results/GRID.csv,
.md and .svg, also where arms failed, which are then named in all three; the exit code is 1.
"""

import argparse
from pathlib import Path

from pipeline import errors
from pipeline.ablations import experiments, figure, results
from pipeline.ablations.grid import arms, read_grid
from pipeline.errors import UserError
from pipeline.files import new_path, write_table

RESULTS = Path("results")


def main() -> None:
    options = _options()
    grid = read_grid(options.grid)
    every = arms(grid)
    print(f"{len(every)} arms; `dvc queue logs ARM` shows what one is doing", flush=True)
    experiments.queue_up(every)
    if arms(grid) != every:  # an arm is named after the code that it runs, which was queued just now
        experiments.withdraw(every)
        raise UserError("code or parameters have changed while they were queued: run this again")
    states = experiments.wait(
        every, options.jobs, tell=lambda line: print(line, flush=True), unchanged=lambda: arms(grid) == every
    )
    stem = RESULTS / options.grid.stem
    rows = results.table(every, states)
    write_table(stem.with_suffix(".csv"), rows)
    figure.write_figure(rows, stem.with_suffix(".svg"))
    words = results.in_words(rows, _about(options.grid, grid.seeds, every[0].baseline), stem.with_suffix(".svg"))
    with new_path(stem.with_suffix(".md")) as part:
        part.write_text(words, encoding="utf-8")
    failed = [arm for arm in every if states[arm.name] != experiments.DONE]
    if failed:
        told = "; ".join(f"{arm.name} ({experiments.reason(arm)})" for arm in failed)
        raise UserError(f"{len(failed)} of {len(every)} arms failed: {told}. Put it right and run this again")
    print(f"all {len(every)} arms are done: {stem}.csv, .md and .svg")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.ablations", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("grid", nargs="?", type=Path, default=Path("ablations.yaml"), help="default: %(default)s")
    parser.add_argument("--jobs", type=int, default=1, help="arms at a time (default: %(default)s)")
    options = parser.parse_args()
    if options.jobs < 1:
        raise UserError(f"--jobs is {options.jobs}, but must be at least 1")
    return options


def _about(grid: Path, seeds: list[int], commit: str) -> str:
    named = f"seed {seeds[0]}" if len(seeds) == 1 else f"seeds {', '.join(map(str, seeds))}"
    return f"`python -m pipeline.ablations {grid}` on commit {commit[:7]}, {named}. Brackets are 95 % intervals."


if __name__ == "__main__":
    errors.run(main)
