"""The joint histogram of base loss and improvement."""

from collections import Counter
from math import floor

import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from pipeline.evaluation.perplexity.density import density_table
from tests.evaluation.perplexity.fake_tokens import any_tokens, random_tokens, table


def slow_cells(tokens: pd.DataFrame) -> Counter:
    """Tokens a cell, by the cell's row and column."""
    pairs = zip(tokens["nll_no_thought"], tokens["improvement"], strict=True)
    return Counter((floor(base / 0.25), floor(gain / 0.1 + 0.5)) for base, gain in pairs)


@given(any_tokens())
def test_cells_count_their_tokens(tokens: pd.DataFrame):
    cells = density_table(tokens)
    found = {(round(c.base_loss / 0.25 - 0.5), round(c.improvement / 0.1)): c.tokens for c in cells.itertuples()}
    assert found == slow_cells(tokens) and len(found) == len(cells)
    assert cells["tokens"].sum() == len(tokens) and (cells["tokens"] > 0).all()


@given(any_tokens())
def test_every_token_is_near_a_cells_centre(tokens: pd.DataFrame):
    cells = density_table(tokens)
    for base, gain in zip(tokens["nll_no_thought"], tokens["improvement"], strict=True):
        near = (cells["base_loss"] - base).abs().le(0.125 + 1e-9) & (cells["improvement"] - gain).abs().le(0.05 + 1e-9)
        assert near.any()


def test_cells_do_not_depend_on_the_tokens():
    """So that two runs' tables can be laid over each other."""
    all_cells = density_table(random_tokens(200, 9)).set_index(["base_loss", "improvement"])["tokens"]
    part = density_table(random_tokens(200, 9).head(300)).set_index(["base_loss", "improvement"])["tokens"]
    assert set(part.index) <= set(all_cells.index) and (all_cells.loc[part.index] >= part).all()


@pytest.mark.parametrize("gain, centre", [(0.0, 0.0), (0.049, 0.0), (-0.049, 0.0), (0.051, 0.1), (-0.16, -0.2)])
def test_no_change_is_in_the_middle_of_a_cell(gain: float, centre: float):
    tokens = table(np.zeros(1, int), np.ones(1, int), np.array([3.3]), np.array([3.3 - gain]), np.zeros(1))
    cells = density_table(tokens)
    assert cells["base_loss"].item() == 3.375 and cells["improvement"].item() == pytest.approx(centre)
