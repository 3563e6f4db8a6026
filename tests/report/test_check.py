"""`make check`: which claims there are, and its exit code."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.report import check
from pipeline.report.results import rivals_of

ROWS = [
    ("rings", "accuracy", "quiet_star", "before", 0.8, 0.7),
    ("rings", "accuracy", "quiet_star", "quiet_star/swapped", 0.7, 0.6),
    ("rings", "accuracy", "quiet_star", "quiet_star/thoughts_off", -0.1, -0.2),  # no claim
    ("rings", "prob", "quiet_star", "before", -0.1, -0.2),  # neither
    ("heldout", "loss", "quiet_star/thoughts_off", "before", -0.002, -0.004),
]
COLUMNS = ["task", "measure", "arm", "against", "difference", "low"]


def outcome(
    folder: Path, rows: list[tuple], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, high: float = 1.0
) -> tuple:
    """The exit code and the first word of each line."""
    path = folder / "comparisons.csv"
    pd.DataFrame(rows, columns=COLUMNS).assign(high=high).to_csv(path)
    monkeypatch.setattr(check, "COMPARISONS", path)
    with pytest.raises(SystemExit) as ended:
        check.main()
    return ended.value.code, [line.split()[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("failing, low", [(None, 0), (0, -0.1), (1, 0.0), (4, -0.006)])
def test_a_claim_that_fails_is_told(failing: int | None, low: float, tmp_path: Path, monkeypatch, capsys):
    rows = [(*row[:-1], low) if i == failing else row for i, row in enumerate(ROWS)]
    words = ["FAILS" if i == failing else "holds" for i in (0, 1, 4)]
    assert outcome(tmp_path, rows, monkeypatch, capsys) == (int(failing is not None), words)


def test_a_loss_without_an_interval_does_not_hold(tmp_path: Path, monkeypatch, capsys):
    rows = [(*row[:-1], None if row is ROWS[4] else row[-1]) for row in ROWS]
    assert outcome(tmp_path, rows, monkeypatch, capsys) == (1, ["holds", "holds", "FAILS"])
    check_text = (*ROWS[4][:-1], None)
    with pytest.raises(SystemExit):
        pd.DataFrame([check_text], columns=COLUMNS).assign(high=None).to_csv(check.COMPARISONS)
        check.main()
    assert capsys.readouterr().out.endswith("-0.002, without an interval\n")


def test_each_of_the_reports_rivals_has_a_line(tmp_path: Path, monkeypatch, capsys):
    rivals = ["no_policy", "untrained", "before", "quiet_star/swapped"]
    assert list(rivals_of("quiet_star")) == rivals
    rows = [("rings", "accuracy", "quiet_star", rival, 0.2, 0.1) for rival in [*rivals, "pause", "quiet_star/random"]]
    assert outcome(tmp_path, rows, monkeypatch, capsys) == (0, ["holds"] * 4)


def test_a_rival_may_be_the_run_that_is_compared(tmp_path: Path, monkeypatch, capsys):
    """Then the comparison is the other way round. The interval's upper end is 1."""
    rows = [("rings", "accuracy", "no_policy", "quiet_star", -0.2, -0.5), ROWS[1]]
    assert outcome(tmp_path, rows, monkeypatch, capsys, high=-0.1) == (0, ["holds"] * 2)
    assert outcome(tmp_path, rows, monkeypatch, capsys) == (1, ["holds", "FAILS"])


def test_a_rival_that_was_trained_and_not_compared_fails(tmp_path: Path, monkeypatch, capsys):
    """As where a third method is the first: of the others only some are compared with each other."""
    rows = [*ROWS[:2], ("rings", "accuracy", "pause", "no_policy", 0.0, -0.1)]
    assert outcome(tmp_path, rows, monkeypatch, capsys) == (1, ["holds", "holds", "FAILS"])
    assert outcome(tmp_path, ROWS[:1], monkeypatch, capsys) == (1, ["holds", "FAILS"])  # a task of one group


def test_nothing_to_check_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(check, "COMPARISONS", tmp_path / "comparisons.csv")
    with pytest.raises(UserError, match="missing or broken"):
        check.main()
    pd.DataFrame(ROWS[2:4], columns=COLUMNS).assign(high=1.0).to_csv(check.COMPARISONS)
    with pytest.raises(UserError, match="nothing to check"):
        check.main()
