"""`python -m pipeline.report.check`: do the run's claims hold? A line for each, and exit code 1 if one fails."""

import sys
from itertools import product
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError, run
from pipeline.evaluation.names import ACCURACY, BEFORE, LOSS, OFF, RUN
from pipeline.report.results import rivals_of
from pipeline.training.warnings import HARM

COMPARISONS = Path("results/compare/comparisons.csv")
RIVALS = rivals_of(RUN)  # in each task


def main() -> None:
    """Check what results/compare/comparisons.csv has. Raises UserError where it has none of the claims."""
    try:
        rows = pd.read_csv(COMPARISONS)
    except (OSError, ValueError) as error:
        raise UserError(f"{COMPARISONS} is missing or broken: run `dvc repro compare`") from error
    claims, compared = [], set()  # claims, and whether each holds; pairs of a task and a rival
    for row in [*rows.itertuples(), *_turned(rows).itertuples()]:
        ends = ", without an interval" if pd.isna(row.low) else f" [{row.low:+.3f}, {row.high:+.3f}]"
        interval = f"{row.difference:+.3f}{ends}"
        if row.measure == ACCURACY and row.arm == RUN and row.against in RIVALS:
            compared.add((row.task, row.against))
            claims.append((f"{row.task}: {RUN} is right more often than {row.against}: {interval}", row.low > 0))
        elif row.measure == LOSS and row.arm == f"{RUN}/{OFF}" and row.against == BEFORE:
            text = f"{row.task}: without thoughts, {RUN} is at most {HARM} nats worse than before training: {interval}"
            claims.append((text, row.low >= -HARM))
    if not claims:
        raise UserError(f"{COMPARISONS} has nothing to check: {RUN} is compared with none of {', '.join(RIVALS)}")
    asked = set(rows.loc[rows["measure"] == ACCURACY, "task"])
    there = {arm.split("/")[0] for arm in {*rows["arm"], *rows["against"]}}
    for task, rival in product(sorted(asked) if RUN in there else (), RIVALS):
        if rival.split("/")[0] in there and (task, rival) not in compared:
            claims.append((f"{task}: {RUN} was not compared with {rival}", False))
    for text, holds in claims:
        print(f"{'holds' if holds else 'FAILS'}  {text}")
    sys.exit(0 if all(holds for _, holds in claims) else 1)


def _turned(rows: pd.DataFrame) -> pd.DataFrame:
    """The rivals' comparisons with the run, the other way round: a rival may be the first method, which is compared."""
    found = rows[(rows["against"] == RUN) & rows["arm"].isin(list(RIVALS))]
    turned = {"arm": found["against"], "against": found["arm"], "difference": -found["difference"]}
    return found.assign(**turned, low=-found["high"], high=-found["low"])


if __name__ == "__main__":
    run(main)
