"""The table of several base models and training seeds, from the figures of its runs."""

from pathlib import Path
from xml.etree import ElementTree

import pandas as pd

from pipeline.ablations import seeds

SVG = "{http://www.w3.org/2000/svg}"
COLLECTIONS = ("PathCollection_1", "PathCollection_2", "PathCollection_3")  # own thoughts, another's, held-out losses


def figures(loss: float, before: float) -> pd.DataFrame:
    rows = [("micro", "accuracy", "quiet_star", 0.9), ("micro", "accuracy", "quiet_star/swapped", 0.25)]
    rows += [("micro", "accuracy", "untrained", 0.3), ("micro", "accuracy", "before", 0.2)]
    rows += [("micro", "prob", "quiet_star", 0.8), ("heldout", "loss_after_marker", "quiet_star", 9.0)]
    rows += [("heldout", "loss", "quiet_star", loss), ("heldout", "loss", "before", before)]
    return pd.DataFrame(rows, columns=["task", "measure", "arm", "value"]).assign(n=10, groups=5)


def test_a_run_has_a_row_for_each_method_and_task():
    rows = seeds.run_rows(figures(0.5, 0.75), ["quiet_star", "untrained"]).set_index("method")
    assert list(rows.index) == ["quiet_star", "untrained"] and rows["accuracy"].tolist() == [0.9, 0.3]
    assert rows["content_effect"].tolist()[:1] == [0.65] and pd.isna(rows.loc["untrained", "content_effect"])
    assert rows.loc["quiet_star", "heldout_loss"] == 0.5 and pd.isna(rows.loc["untrained", "heldout_loss"])


def test_held_out_losses_are_compared_within_a_run():
    """Runs differ by 1 nat, the methods of each by 0.25: the second is certain, the first is not."""
    runs = [
        seeds.run_rows(figures(seed + 0.5, seed + 0.75), ["quiet_star", "untrained", "before"]).assign(
            base_seed=seed, seed=seed
        )
        for seed in (1, 2)
    ]
    page = seeds.in_words(pd.concat(runs))
    assert "| before | 2 | 2.250 [-4.103, 8.603]: 1.750, 2.750 | 0.250 [0.250, 0.250]: 0.250, 0.250 |" in page
    assert "| quiet_star | 2 | 2.000 [-4.353, 8.353]: 1.500, 2.500 |  |" in page


def test_every_run_is_drawn(tmp_path: Path):
    """As a dot each, the swapped ones as rings; untrained thoughts have no held-out loss to be drawn."""
    methods = ["quiet_star", "untrained", "before"]
    runs = [
        seeds.run_rows(figures(0.5, 0.75), methods).assign(base_seed=base, seed=seed)
        for base, seed in ((1, 1), (2, 2), (1, 2))
    ]
    drawing = tmp_path / "seeds.svg"
    seeds.draw(pd.concat(runs), drawing)
    groups = {group.get("id"): group for group in ElementTree.parse(drawing).iter(f"{SVG}g")}
    assert [len([*groups[name].iter(f"{SVG}use")]) for name in COLLECTIONS] == [9, 3, 6]
    texts = {text.text for text in groups["figure_1"].iter(f"{SVG}text")}
    assert {"micro", "held-out text", *methods} <= texts
