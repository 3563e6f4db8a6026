"""`make real`: which parameters its words set."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.ablations import real

COMPARED, TEXT = ["quiet_star", "no_policy", "no_thought", "before"], ["tasks/text/commonsense_qa_text.yaml"]
GSM8K = ["tasks/gsm8k.yaml", "tasks/commonsense_qa.yaml"]


@pytest.mark.parametrize(
    "words, methods, tasks",
    [
        ([], COMPARED, TEXT),
        (["train.steps=5"], COMPARED, TEXT),
        (["data=gsm8k"], COMPARED, GSM8K),
        (["data=textbooks", "method=rlp"], ["rlp", "no_thought", "untrained", "before"], TEXT),
        (["data=textbooks", "tasks.files=[tasks/gsm8k.yaml]"], COMPARED, GSM8K[:1]),
    ],
)
def test_given_words_win(words: list[str], methods: list[str], tasks: list[str], tmp_path: Path, monkeypatch):
    set_to = {}
    monkeypatch.setattr(real, "run_single", lambda name, values, out: set_to.update(values))
    monkeypatch.setattr(pd, "read_csv", lambda path: pd.DataFrame())
    monkeypatch.setattr("sys.argv", ["real", *words, "--root", str(tmp_path)])
    real.main()
    assert set_to["arms.methods"] == methods and set_to["tasks.files"] == tasks
    assert set_to["evaluate.questions"] == 50 and set_to["tasks.root"] == str(tmp_path)
