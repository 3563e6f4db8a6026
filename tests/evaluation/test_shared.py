"""Processes take turns at batches; `tests/evaluation/test_killed.py` runs whole stages in two."""

from pathlib import Path

import pytest

from pipeline.evaluation import shared
from pipeline.resume import ROWS, Scratch


def as_rank(rank: int, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    launched = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": of, "MASTER_ADDR": "one", "MASTER_PORT": 9}
    for name, value in launched.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize("rank, own", [(0, [0, 3, 6]), (1, [1, 4]), (2, [2, 5])])
def test_a_process_computes_every_so_manyth_item_and_no_more(rank: int, own: list, monkeypatch: pytest.MonkeyPatch):
    """All processes meet once a turn, also those that have nothing to do in the last one."""
    as_rank(rank, 3, monkeypatch)
    met = []
    monkeypatch.setattr(shared, "gather_object", lambda mine: met.append(mine) or mine)
    assert list(shared.in_turns(lambda item: item * 10, range(7))) == [10 * item for item in own]
    assert len(met) == 3


def test_one_process_computes_an_item_when_it_is_asked_for():
    done = []
    results = shared.in_turns(lambda item: done.append(item) or -item, range(5))
    assert (next(results), next(results), done) == (0, -1, [0, 1])
    assert list(results) == [-2, -3, -4]


def test_what_a_copy_adds_is_not_kept(tmp_path: Path):
    kept = Scratch(tmp_path / ROWS)
    kept.add([{"a": 1}, {"a": 2}])
    copy = Scratch(tmp_path / ROWS, copy=True)
    copy.add([{"a": 3}])
    assert [list(some.rows) for some in (kept, copy)] == [[{"a": 1}, {"a": 2}], [{"a": 1}, {"a": 2}, {"a": 3}]]
    assert copy.folder == tmp_path and [path.name for path in tmp_path.iterdir()] == [ROWS]
    assert len(Scratch(tmp_path / ROWS).rows) == 2
