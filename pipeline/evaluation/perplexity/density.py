"""Base loss against improvement: how many tokens are where (paper, appendix: distribution of changes)."""

import numpy as np
import pandas as pd

LOSS_CELL = 0.25  # nats
IMPROVEMENT_CELL = 0.1  # nats; the middle cell holds what changed by less than half of it


def density_table(tokens: pd.DataFrame) -> pd.DataFrame:
    """One row a cell that has tokens: its centre (base_loss, improvement; nats) and how many (tokens).

    Cells start at 0 in base loss and are centred on 0 in improvement, the same in every run, so that runs compare.
    """
    row = np.floor(tokens["nll_no_thought"] / LOSS_CELL).astype(int)
    column = np.floor(tokens["improvement"] / IMPROVEMENT_CELL + 0.5).astype(int)
    cells = tokens.groupby([row.rename("base_loss"), column.rename("improvement")]).size().reset_index(name="tokens")
    return cells.assign(
        base_loss=(cells["base_loss"] + 0.5) * LOSS_CELL, improvement=cells["improvement"] * IMPROVEMENT_CELL
    )
