"""The arms' figures in words and as a figure: what failed is never left out."""

from pathlib import Path

import pandas as pd
import pytest

from pipeline.ablations import results
from pipeline.ablations.results import COLUMNS, WHOLE, in_words, write_figure

ARMS = {(5, 1): 0.5, (5, 2): 0.6, (1, 1): 0.1, (1, 2): 0.2}  # accuracies; lengths are not in order


def rows(*failed: tuple[int, int]) -> pd.DataFrame:
    found = []
    for (length, lookahead), mean in ARMS.items():
        arm = {"experiment": f"arm-{length}-{lookahead}", "method": "quiet_star"}
        arm |= {"thought_tokens": length, "lookahead": lookahead}
        if (length, lookahead) in failed:
            found.append(arm | {"state": "failed"})
            continue
        figures = {"state": "done", "seeds": 1, "n": 10, "value": mean, "low": mean - 0.05, "high": mean + 0.05}
        found += [arm | figures | {"task": "rings", "measure": measure} for measure in ("accuracy", "prob")]
    base = {"experiment": "plain", "state": "done", "method": "before", "task": "rings", "seeds": 1, "n": 10}
    found += [base | {"measure": m, "value": 0.05, "low": 0.0, "high": 0.1} for m in ("accuracy", "prob")]
    return pd.DataFrame(found).reindex(columns=COLUMNS).astype(dict.fromkeys(WHOLE, "Int64"))


def with_parts(some: pd.DataFrame) -> pd.DataFrame:
    """The same, and of the rings the accuracy by number of moves: 9 (a tenth less) and 10 (a fifth less)."""
    accuracy = some[some["measure"] == "accuracy"]
    parts = [
        accuracy.assign(task=f"rings/{part}", **{name: accuracy[name] - less for name in ("value", "low", "high")})
        for part, less in (("9", 0.1), ("10", 0.2))
    ]
    return pd.concat([some, *parts], ignore_index=True).astype(dict.fromkeys(WHOLE, "Int64"))


def words(some: pd.DataFrame) -> list[str]:
    return in_words(some, "about", Path("grid.svg")).splitlines()


def test_a_table_of_lengths_and_lookaheads_and_a_chart_with_a_line_a_lookahead():
    shown = words(rows())
    table = shown.index("| thought tokens | lookahead 1 | lookahead 2 |")
    assert shown[table + 2] == "| 1 | 0.100 [0.050, 0.150] | 0.200 [0.150, 0.250] |"
    assert shown[table + 3] == "| 5 | 0.500 [0.450, 0.550] | 0.600 [0.550, 0.650] |"
    assert "before 0.050 [0.000, 0.100]" in shown and not any("failed" in line for line in shown)
    assert "![Accuracy against thought length](grid.svg)" in shown
    start = shown.index("```mermaid")
    assert shown[start + 1 : start + 8] == [
        "xychart-beta",
        '  title "rings"',
        '  x-axis "thought tokens" [1, 5]',
        '  y-axis "accuracy" 0 --> 1',
        "  line [0.100, 0.500]",
        "  line [0.200, 0.600]",
        "  line [0.050, 0.050]",
    ]
    assert "Lines, in this order: lookahead 1; lookahead 2; before." in shown


@pytest.mark.parametrize("failed", [((5, 1),), ((5, 1), (5, 2)), ((1, 2), (5, 2)), tuple(ARMS)])
def test_every_arm_that_failed_is_named_and_has_its_cell(failed: tuple[tuple[int, int], ...], tmp_path: Path):
    shown = words(rows(*failed))
    named = next(line for line in shown if line.startswith("**"))
    assert named.startswith(f"**{len(failed)} of 5 arms failed:**")
    for length, lookahead in failed:
        assert f"arm-{length}-{lookahead}" in named
        if len(failed) < len(ARMS):
            line = next(line for line in shown if line.startswith(f"| {length} |"))
            assert line.split(" | ")[lookahead].strip(" |") == "failed"
    figure, again = tmp_path / "one.svg", tmp_path / "two.svg"
    for path in (figure, again):
        write_figure(rows(*failed), path)
    assert figure.read_bytes() == again.read_bytes()
    assert all(f"arm-{length}-{lookahead}" in figure.read_text() for length, lookahead in failed)


def test_a_method_whose_every_arm_failed_does_not_hide_another():
    pauses = rows(*ARMS).dropna(subset="thought_tokens").assign(method="pause")
    shown = words(pd.concat([rows(), pauses], ignore_index=True))
    cells = next(line for line in shown if line.startswith("| 5 |")).strip("| ").split(" | ")
    assert cells == ["5", "0.500 [0.450, 0.550]", "0.600 [0.550, 0.650]", "failed", "failed"]


def test_a_table_and_a_panel_by_part_below_those_of_whole_tasks(tmp_path: Path):
    shown, whole = words(with_parts(rows((5, 2)))), words(rows((5, 2)))
    assert shown[: len(whole)] == whole  # the parts change nothing else
    table = shown.index("| method | thought tokens | lookahead | 9 | 10 |")
    assert shown[table - 2] == "## Accuracy, rings by part"
    assert shown[table + 2 :] == [
        "| quiet_star | 5 | 1 | 0.400 [0.350, 0.450] | 0.300 [0.250, 0.350] |",
        "| quiet_star | 5 | 2 | failed | failed |",
        "| quiet_star | 1 | 1 | 0.000 [-0.050, 0.050] | -0.100 [-0.150, -0.050] |",
        "| quiet_star | 1 | 2 | 0.100 [0.050, 0.150] | 0.000 [-0.050, 0.050] |",
        "| before |  |  | -0.050 [-0.100, 0.000] | -0.150 [-0.200, -0.100] |",
    ]
    for name, some in (("plain", rows()), ("parts", with_parts(rows()))):
        write_figure(some, tmp_path / f"{name}.svg")
    plain, drawn = ((tmp_path / f"{name}.svg").read_text() for name in ("plain", "parts"))
    for lookahead in ARMS:
        title = f"rings by part: quiet_star, lookahead {lookahead[1]}"
        assert title in drawn and title not in plain
    assert drawn.count(">thought tokens<") == 3 and plain.count(">thought tokens<") == 1


def test_rows_of_another_params_yaml_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = Path("params.yaml").read_text()
    monkeypatch.chdir(tmp_path)
    table, columns, kept, known = Path("table.csv"), ["method", "seed", "accuracy", "settings"], {}, []
    for change in (
        ("", ""),
        ("seeds: [1]", "seeds: [1, 2]"),
        ("passages: 6", "passages: 7"),
        ("steps: 150", "steps: 160"),
    ):
        text = text.replace(*change)
        Path("params.yaml").write_text(text)
        known.append(results.settings_now())
        found = pd.DataFrame({"method": ["pause"], "seed": [len(kept)], "accuracy": [0.5]})
        results.add_rows(table, found, known[-1], ["method", "seed"], ["seed"])
        kept[change[0]] = results.read_rows(table, columns, known[-1])["seed"].tolist()
    assert list(kept.values()) == [[0], [0, 1], [0, 1, 2], [3]]
    assert results.read_rows(table, columns, known[0])["seed"].tolist() == [0, 1, 2]  # they stay in the file
    pd.DataFrame({"method": ["pause"], "seed": [1], "accuracy": [0.5]}).to_csv(table)  # as before there were settings
    assert results.read_rows(table, columns, known[0]).empty
