"""`python -m pipeline.evaluation.check`: do the run's claims hold? A line for each, and exit code 1 if one fails."""

import sys
from pathlib import Path

import pandas as pd

from pipeline.errors import UserError, run

COMPARISONS = Path("results/compare/comparisons.csv")
RUN = "quiet_star"
BEATEN = ("no_policy", "before", "untrained", f"{RUN}/swapped")  # in each task; swapped: it is what thoughts say
WITHOUT_THOUGHTS = f"{RUN}/thoughts_off"
HARM = 0.05  # nats a token that predictions without thoughts may have become worse by


def main() -> None:
    """Check what results/compare/comparisons.csv has. Raises UserError where it has none of the claims."""
    try:
        rows = pd.read_csv(COMPARISONS)
    except (OSError, ValueError) as error:
        raise UserError(f"{COMPARISONS} is missing or broken: run `dvc repro compare`") from error
    found = claims(rows)
    if not found:
        raise UserError(f"{COMPARISONS} has nothing to check: {RUN} is compared with none of {', '.join(BEATEN)}")
    for text, holds in found:
        print(f"{'holds' if holds else 'FAILS'}  {text}")
    sys.exit(0 if all(holds for _, holds in found) else 1)


def claims(rows: pd.DataFrame) -> list[tuple[str, bool]]:
    """Each claim with its figures, and whether it holds: for the rows of comparisons.csv that there are."""
    found = []
    for row in rows.itertuples():
        interval = f"{row.difference:+.3f} [{row.low:+.3f}, {row.high:+.3f}]"
        if row.measure == "accuracy" and row.arm == RUN and row.against in BEATEN:
            found.append((f"{row.task}: {RUN} is right more often than {row.against}: {interval}", row.low > 0))
        elif row.measure == "loss" and row.arm == WITHOUT_THOUGHTS and row.against == "before":
            text = f"{row.task}: without thoughts, {RUN} is at most {HARM} nats worse than before training: {interval}"
            found.append((text, row.low >= -HARM))
    return found


if __name__ == "__main__":
    run(main)
