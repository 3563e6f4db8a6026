"""The benchmark prints what it promises, counts the useful work by hand's arithmetic, and refuses impossible shapes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.bench import suite
from pipeline.bench.__main__ import main, parse
from pipeline.bench.measure import build, step_of
from pipeline.errors import UserError
from pipeline.models.shape import shape_of
from pipeline.models.work import products
from pipeline.thought.decoder import Decoder
from tests.evaluation.test_harness import byte_tokenizer
from tests.thought.tiny import LLAMA, base_model, rows_of

TINY = "--hidden 16 --layers 2 --heads 4 --kv-heads 2 --ffn 24 --vocab 50 --tokens 8 --repeats 1 --new-tokens 3"
EVERY = {"device_name", "torch", "transformers", "peak_memory_bytes", "peak_process_bytes", "attention", "seed"}
EVERY |= {"gemm_2048_flops_per_second"}
TRAIN = {"step_seconds", "tokens_per_second", "useful_flops", "gemm_flops_per_second", "gemm_fraction"}


def printed(line: str, capsys: pytest.CaptureFixture) -> dict:
    main(line.split())
    shown = capsys.readouterr().out
    assert shown.count("\n") == 1
    return json.loads(shown)


@pytest.mark.parametrize("options", ["", "--positions 3 --checkpointing --attention reference --freeze-base"])
def test_train_prints_one_line(options: str, capsys: pytest.CaptureFixture):
    record = printed(f"train {TINY} {options}", capsys)
    assert record.keys() >= EVERY | TRAIN
    assert record["tokens_per_second"] == pytest.approx(8 / record["step_seconds"])
    achieved = record["useful_flops"] / record["step_seconds"]
    assert record["gemm_fraction"] == pytest.approx(achieved / record["gemm_flops_per_second"])
    assert record["peak_process_bytes"] > record["peak_memory_bytes"] >= 0
    assert record["what"] == "train" and record["hidden"] == 16 and record["seed"] == 0
    assert record["attention"] == ("reference" if "reference" in options else "blocked")


@pytest.mark.parametrize("count", [3, pytest.param(1, marks=pytest.mark.slow)])
def test_generate_prints_one_line_and_equals_recomputation(count: int, capsys: pytest.CaptureFixture):
    record = printed(f"generate {TINY} --batch 2 --new-tokens {count}", capsys)
    assert record.keys() >= EVERY | {"seconds_per_token", "seconds_per_token_recomputed"}
    assert record["equal_to_recomputed"] is True


@pytest.mark.parametrize(("choose", "reads"), [("random", 1), ("entropy", 2), ("gate", 2)])
def test_a_share_of_the_positions_thinks(choose: str, reads: int, capsys, monkeypatch: pytest.MonkeyPatch):
    """As many rows are run as the useful work counts. Only a model whose gate chooses has one."""
    rows, read, texts = rows_of(Decoder, "run_rows", monkeypatch), Decoder.read, []
    monkeypatch.setattr(Decoder, "read", lambda self, *given: texts.append(given) or read(self, *given))
    record = printed(f"train {TINY} --tokens 41 --share 0.25 --choose {choose}", capsys)
    assert set(rows) == {2 * 10, 2 * 10 * 14} and record["share"] == 0.25
    assert len(texts) == 2 * reads  # in the warm-up and the measured step
    gate = 16 * 16 + 16 + 16 + 1 if choose == "gate" else 0
    every = printed(f"train {TINY} --tokens 41", capsys)
    assert 0.25 < record["useful_flops"] / every["useful_flops"] < 0.3
    assert record["parameters"] == every["parameters"] + gate


def test_precision_prints_how_advantages_in_bfloat16_correlate(tmp_path: Path, capsys: pytest.CaptureFixture):
    """Of random weights, and of a model's folder and a text."""
    record = printed(f"precision {TINY} --dtype bfloat16 --tokens 24", capsys)
    assert record.keys() >= EVERY - {"gemm_2048_flops_per_second"}
    assert list(record["advantage_correlation"]) == list(record["unresolved"]) == ["0.001", "0.01", "0.1"]
    assert all(0.99 < value < 1 - 1e-9 for value in record["advantage_correlation"].values())
    assert all(0 <= value < 0.6 for value in record["unresolved"].values())
    tokenizer = byte_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    base_model(LLAMA | {"vocab_size": len(tokenizer)}).save_pretrained(tmp_path)
    (tmp_path / "text").write_text("a text of some length, which is read " * 9)
    words = f"precision {TINY} --dtype float32 --tokens 24 --model {tmp_path} --text {tmp_path / 'text'}"
    record = printed(words, capsys)
    assert list(record["advantage_correlation"].values()) == pytest.approx([1, 1, 1], abs=1e-6)
    sizes = {"vocab": len(tokenizer), "hidden": 16, "ffn": LLAMA["intermediate_size"]}
    assert {name: record[name] for name in sizes} == sizes
    with pytest.raises(UserError, match="fewer than --batch times --tokens"):
        main(words.replace("--tokens 24", "--tokens 999").split())
    (tmp_path / "empty").mkdir()
    for folder, told in (("none", "there is no model at .*/none: the folder"), ("empty", ".*/empty cannot be read: ")):
        with pytest.raises(UserError, match=told):
            main(words.replace(f"--model {tmp_path}", f"--model {tmp_path}/{folder}").split())


@pytest.mark.slow
def test_it_needs_no_dvc_hydra_or_datasets():
    program = (
        "import sys\n"
        "for name in ('dvc', 'hydra', 'datasets', 'omegaconf', 'pandas'): sys.modules[name] = None\n"
        "import pipeline.bench.__main__, pipeline.bench.suite"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("share", "think"), [(1, 7), (0.43, 3)])
def test_products_are_the_steps_rows(share: float, think: int):
    """T = 2 + 2 + 1 = 5 tokens a row, K = 2 passes to sample, 7 of 8 tokens that think, or 3: counted by hand."""
    options = parse(f"train {TINY} --batch 3 --rationales 2 --thought-tokens 2 --lookahead 2 --share {share}".split())
    model = build(options)
    found = list(products(shape_of(model.base), step_of(options)))
    body, head = found[:-1], found[-1]
    assert len(body) == 3 * 7 * options.layers
    weights = sum(m.in_features * m.out_features for m in model.base.model.modules() if hasattr(m, "in_features"))
    learned = sum(rows * i * o * back for rows, i, o, _, back in body)
    assert learned == 3 * (8 + think * 2 * 5) * weights
    sampled = sum(rows * i * o * (forward - back) for rows, i, o, forward, back in body)
    assert sampled == 3 * think * 2 * 2 * weights
    rows, inputs, outputs, forward, backward = head
    assert (inputs, outputs) == (16, 50)
    assert rows * backward == pytest.approx(3 * (8 + think * 2 * (2 + 2)))
    assert rows * forward == pytest.approx(3 * (8 + think * 2 * (2 + 2)) + 3 * think * 2 * 2)


@pytest.mark.parametrize(
    "line, complaint",
    [
        ("train --hidden 10 --heads 3", "--heads must divide --hidden"),
        ("train --heads 8 --kv-heads 3", "--kv-heads must divide --heads"),
        ("train --hidden 9 --heads 3 --kv-heads 3", "--hidden over --heads must be even"),
        ("generate --vocab 1", "--vocab must be at least 3"),
        ("train --tokens 4 --lookahead 4", "--tokens must be at least --lookahead"),
        ("train --share 0", "--share must be above 0"),
        ("train --model folder --text text", "--model and --text go together, with precision"),
        ("precision --model folder", "--model and --text go together, with precision"),
        ("precision --rationales 1", "--rationales must be at least 2"),
        (f"train --vocab {2**63 - 1}", f"{2**63 - 1} is not between 1 and 1000000"),
    ],
)
def test_impossible_shapes_are_refused(line: str, complaint: str, capsys: pytest.CaptureFixture):
    with pytest.raises((UserError, SystemExit)) as error:
        main(line.split())
    assert complaint in f"{error.value}{capsys.readouterr().err}"


def test_every_line_of_the_sets_parses(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    for line in sum(suite.SETS.values(), []):
        assert parse(line.split()).what == line.split()[0]
    monkeypatch.setattr(sys, "argv", ["suite", "tpu"])
    with pytest.raises(UserError, match="usage"):
        suite.main()


@pytest.mark.slow
def test_the_suite_writes_a_table_and_says_what_failed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(suite, "SETS", {"cpu": [f"train {TINY}", "train --hidden 10 --heads 3"]})
    monkeypatch.setattr(suite, "FOLDER", tmp_path / "bench")
    monkeypatch.setattr(sys, "argv", ["suite", "cpu"])
    with pytest.raises(UserError, match="1 of 2 runs failed"):
        suite.main()
    records = [json.loads(line) for line in (tmp_path / "bench/cpu.jsonl").read_text().splitlines()]
    assert records[0]["command"] == f"train {TINY}" and records[0]["step_seconds"] > 0
    assert "must divide" in records[1]["failed"]
    table = (tmp_path / "bench/cpu.md").read_text()
    row, failed, _, where = table.splitlines()[2:]
    assert row.startswith(f"| `train {TINY}` | {records[0]['step_seconds']:.2f} |") and "|  |  |" in row
    assert failed.startswith("| `train --hidden 10 --heads 3` failed: --heads must divide ")
    assert where.startswith(f"{records[0]['device_name']}, {records[0]['threads']} threads, torch ")
    assert table in capsys.readouterr().out
