"""Outputs are whole or absent."""

import errno
import hashlib
import json
import os
import time
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import BATCH_ROWS, arrow_table, checked_table, digests, read_rows, replacing, write_rows

SCHEMA = pa.schema({"n": pa.int64()})


def test_a_failure_leaves_what_was_there_and_nothing_new(tmp_path: Path):
    path = tmp_path / "rows.parquet"
    write_rows(path, [{"n": 1}], SCHEMA)
    with pytest.raises(ZeroDivisionError):
        write_rows(path, ({"n": 1 // (BATCH_ROWS - i)} for i in range(BATCH_ROWS + 1)), SCHEMA)
    assert list(read_rows(path)) == [{"n": 1}]
    with pytest.raises(RuntimeError), replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "half").write_text("x")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_takes_the_place_of_a_folder_when_it_is_on_the_disk(tmp_path: Path, on_disk: list[str]):
    for name in ("folder", "folder.part"):  # the part and its lock are left over from a killed run
        (tmp_path / name).mkdir()
        (tmp_path / name / "old").write_text("x")
    (tmp_path / "folder.part.lock").write_text("1")
    with replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "new").write_text("y")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["folder", "folder/new"]
    assert on_disk[0] == "remove folder.part" and sorted(on_disk[1:3]) == ["sync folder.part", "sync folder.part/new"]
    assert on_disk[3:] == ["remove folder", "replace folder.part folder", "sync ."]


def test_a_file_takes_the_place_of_a_file_at_once(tmp_path: Path, on_disk: list[str], monkeypatch: pytest.MonkeyPatch):
    """Nothing removes the old one before: tables of hours of work are written again and again."""
    (tmp_path / "table").write_text("old")
    monkeypatch.setattr(Path, "unlink", lambda path, **_: on_disk.append(f"unlink {path.name}"))
    with replacing(tmp_path / "table") as part:
        part.write_text("new")
    unlinked = [f"unlink table.part{end}" for end in ("", "", ".lock")]
    assert on_disk == [unlinked[0], "sync table.part", "replace table.part table", "sync .", *unlinked[1:]]
    assert (tmp_path / "table").read_text() == "new"


def test_while_one_process_writes_an_output_no_other_can(tmp_path: Path):
    """Not even as it leaves: the lock of the first is not removed by the one that was refused."""
    with replacing(tmp_path / "out") as part:
        part.write_text("one")
        for _ in range(2):
            told = f"^process {os.getpid()} is writing {tmp_path / 'out'}: wait until it ends, or end it$"
            with pytest.raises(UserError, match=told), replacing(tmp_path / "out") as other:
                other.write_text("another")
        with replacing(tmp_path / "out2") as other:
            other.write_text("2")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"out": "one", "out2": "2"}


def test_a_file_is_hashed_again_only_where_it_was_written_or_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hashed, file_digest = [], hashlib.file_digest

    def note(file, how):
        hashed.append(Path(file.name).name)
        return file_digest(file, how)

    monkeypatch.setattr(hashlib, "file_digest", note)
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    found = [digests(tmp_path), digests(tmp_path), digests(tmp_path, "b")]
    assert sorted(hashed) == ["a", "b"] and found[0] == found[1] and found[2] == {"b": found[0]["b"]}
    kept = (tmp_path / "a").stat()
    time.sleep(0.02)  # times of files are as coarse as the system's clock
    (tmp_path / "a").write_text("A")  # in place, of the same size, and made to look as old
    os.utime(tmp_path / "a", ns=(kept.st_atime_ns, kept.st_mtime_ns))
    (tmp_path / "new").write_text("c")
    (tmp_path / "new").rename(tmp_path / "b")
    again = digests(tmp_path)
    assert sorted(hashed) == ["a", "a", "b", "b"]
    assert again == {name: hashlib.sha256(text).hexdigest() for name, text in {"a": b"A", "b": b"c"}.items()}


def test_files_behind_links_to_folders_are_hashed_but_not_those_of_a_link_upward(tmp_path: Path):
    (tmp_path / "real/deep").mkdir(parents=True)
    (tmp_path / "set").mkdir()
    (tmp_path / "real/deep/a").write_text("a")
    (tmp_path / "real/deep/up").symlink_to(tmp_path / "real")
    (tmp_path / "set/sub").symlink_to(tmp_path / "real")
    (tmp_path / "set/gone").symlink_to(tmp_path / "nothing")
    assert list(digests(tmp_path / "set")) == ["sub/deep/a"]


def test_a_full_disk_without_a_name(tmp_path: Path):
    """In a folder that is being written, the inner path is named."""
    rust = RuntimeError("I/O error: No space left on device (os error 28)")  # safetensors and tokenizers
    arrow = OSError(errno.ENOSPC, "Error writing bytes to file. Detail: [errno 28] No space left on device")
    for error in (rust, arrow):
        with pytest.raises(OSError) as told, replacing(tmp_path / "out") as folder, replacing(folder / "rows.parquet"):
            raise error
        assert (told.value.errno, told.value.strerror) == (errno.ENOSPC, "No space left on device")
        assert told.value.filename == str(tmp_path / "out.part/rows.parquet")


def test_json_and_tables_read_back(tmp_path: Path):
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError):
            files.write_json(tmp_path / "metrics.json", {"a": {"b": value}})
    assert not list(tmp_path.iterdir())
    files.write_json(tmp_path / "deep/metrics.json", {"a": [1, 0.1, None, "é"]})
    assert json.loads((tmp_path / "deep/metrics.json").read_text()) == {"a": [1, 0.1, None, "é"]}
    table = pd.DataFrame({"x": [1 / 3, 1e-12, None], "y": ["a,b", "c\nd", "é"]})
    files.write_table(tmp_path / "t.parquet", table)
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
    files.write_table(tmp_path / "t.csv", table)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "t.csv"), table, rtol=1e-6)
    assert b"\r" not in (tmp_path / "t.csv").read_bytes()


def test_more_rows_than_a_batch(tmp_path: Path):
    """Arrow rows stay on the disk, are the same bytes each time, and are refused if they are cut short."""
    count = 2 * BATCH_ROWS + 3
    for name in ("rows.parquet", "one.arrow", "other.arrow"):
        assert write_rows(tmp_path / name, ({"n": i} for i in range(count)), SCHEMA) == count
    assert [row["n"] for row in read_rows(tmp_path / "rows.parquet")] == list(range(count))
    before = pa.total_allocated_bytes()
    table = arrow_table(tmp_path / "one.arrow")
    assert pa.total_allocated_bytes() - before < 8 * count / 10
    assert table["n"].to_pylist() == list(range(count))
    other = tmp_path / "other.arrow"
    assert (tmp_path / "one.arrow").read_bytes() == other.read_bytes()
    os.truncate(other, BATCH_ROWS * 8 // 2)  # half of the first batch
    with pytest.raises(UserError, match="other.arrow"):
        arrow_table(other)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 but not really", b"no arrow at all", b"\xff\xff\xff\xff"])
def test_a_missing_or_broken_file(content: bytes | None, tmp_path: Path):
    path = tmp_path / "rows"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match="rows is missing or not a Parquet file: run `dvc repro`"):
        list(read_rows(path))
    with pytest.raises(UserError, match="rows is missing or not an Arrow file: run `dvc repro`"):
        arrow_table(path)


def test_a_checked_table_has_the_columns_of_the_schema_and_no_value_missing(tmp_path: Path):
    path = tmp_path / "rows.arrow"
    for rows in ([{"n": 1}], []):
        write_rows(path, rows, SCHEMA)
        assert checked_table(path, SCHEMA).to_pylist() == rows
    for rows, schema in (([{"n": 1}, {"n": None}], SCHEMA), ([{"m": 1}], pa.schema({"m": pa.int64()}))):
        write_rows(path, rows, schema)
        with pytest.raises(UserError, match="rows.arrow does not hold the columns n: int64"):
            checked_table(path, SCHEMA)
