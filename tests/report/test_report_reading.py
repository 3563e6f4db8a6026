"""A file that is missing or cut short ends in one line that names it, and leaves no half-written page."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.errors import UserError
from pipeline.report.page import write_report
from pipeline.report.reading import read_csv, read_json, read_parquet


def test_every_file_is_needed(run: Path, undrawn):
    for path in (run / "results").glob("*/*"):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=f"^{path}: no such file$"):
            write_report(run / "params.yaml", run / "results", run / "page/index.html")
        path.write_bytes(content)
    assert not (run / "page").exists()


@pytest.mark.parametrize("read", [read_json, lambda path: read_csv(path, "a"), lambda path: read_parquet(path, "a")])
def test_files_of_another_kind(tmp_path: Path, read):
    path = tmp_path / "file"
    for content in (b"\xff\xfe\x00 not\n this", b"", b"[" * 100_000):
        path.write_bytes(content)
        with pytest.raises(UserError, match=f"^{path}: cannot be read: ."):
            read(path)


def test_columns(tmp_path: Path):
    path = tmp_path / "table.csv"
    path.write_text("group,other,n,mean\nNA,,1,\n,2,0.1,7\n")
    table = read_csv(path, "group", "n", "mean")
    wanted = pd.DataFrame({"group": ["NA", ""], "n": [1.0, 0.1], "mean": [None, 7.0]})
    pd.testing.assert_frame_equal(table, wanted, check_dtype=False)
    with pytest.raises(UserError, match=f"^{path}: cannot be read: Usecols do not match columns.*ci_low"):
        read_csv(path, "n", "ci_low", "ci_high")
    wanted.assign(group=["a", None]).to_parquet(tmp_path / "table.parquet")
    assert read_parquet(tmp_path / "table.parquet", "group")["group"].tolist() == ["a", ""]
