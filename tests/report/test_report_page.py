"""The page: its numbers, its figures, escaping, what other methods show, and that it needs nothing but itself."""

import re
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import fake_outputs as fake
import pandas as pd
import pytest
from fake_outputs import GROUPS, HOSTILE, PASSAGE, write, write_run
from markupsafe import escape
from report_page import Page, flat

from pipeline.errors import UserError
from pipeline.report import certainty, quotes, results
from pipeline.report.method import METHODS
from pipeline.report.page import write_report
from pipeline.report.reading import read_csv, read_json, read_parquet


def test_what_was_trained(page: Page):
    assert "|method|Quiet-STaR|base model|qwen3 of 4 layers, from scratch|" in page.flat
    assert "|parameters|1,234,567|text|micro-world, seed 1|tokens of text read|983,040|" in page.flat
    assert "|held-out loss with thoughts, nats|1.510 → 1.100|" in page.flat
    assert "|thoughts that contain the right working|40.0% → 95.0%|" in page.flat
    assert "A language model of 1.2 million parameters read 983,040 tokens of text. It learned to write" in page.text
    assert "|Warning.|step 41: " in page.flat and page.flat.count("|Warning.|") == 1


def test_a_base_model_and_a_text_from_the_hub(run: Path, undrawn):
    (run / "params.yaml").write_text(re.sub(r"(path|revision): null", r"\1: some/\1", fake.HUB_PARAMS))
    text = Page(run).flat
    assert "|base model|some/path at some/revision|" in text and "|text|openai/gsm8k, main, train|" in text


def test_the_runs_own_numbers(page: Page):
    text = page.flat
    assert "|gsm8k|accuracy|9.5%|10.0%|90.0%|+80.0 [+77.0, +83.0]|p = 0.023|1,400|" in text
    assert "|gsm8k|probability of the right answer|11.0%|12.5%|75.0%|+62.5 [+60.0, +65.0]|1,400|" in text
    assert "|commonsense_qa|accuracy|9.5%|10.0%|11.0%|+1.0 [−2.0, +4.0]|" in text
    assert "|loss, nats per token|1.234|1.000|+0.234 [+0.200, +0.270]|" in text
    assert "|perplexity|3.437|2.718|" in text
    assert "120 texts with 12,340 tokens" in text
    raw = page.file.read_text(encoding="utf-8")  # a line does not break inside a figure
    assert "[+77.0,\N{NO-BREAK SPACE}+83.0]" in raw and "p\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}0.023" in raw


@pytest.mark.parametrize(
    "numbers, opening, change",
    [
        ((0.02, 0.001, 0.04), "Thinking helps", "12.0% with, +2.0 points (95% interval +0.1 to +4.0; p"),
        ((-0.02, -0.04, -0.001), "Thinking hurts", "8.0% with, −2.0 points (95% interval −4.0 to −0.1; p"),
        ((0.02, 0.0, 0.04), "Undecided", "12.0% with, +2.0 points (95% interval 0.0 to +4.0, which includes zero; p"),
        ((-0.02, -0.04, 0), "Undecided", "8.0% with, −2.0 points (95% interval −4.0 to 0.0, which includes zero; p"),
    ],
)
def test_verdict_follows_the_interval(page: Page, numbers: tuple, opening: str, change: str):
    found, text = results.own_findings({"gsm8k": fake.task(*numbers)}, fake.perplexity(), METHODS["quiet_star"])
    assert found.text.startswith(f"{opening} on gsm8k: accuracy is 10.0% without thoughts and {change}")
    assert text.text in page.text and text.text.startswith("Thinking helps on held-out text: the loss is 1.234")


def test_ways_of_training_compared(page: Page):
    text = page.flat
    assert "|gsm8k|base model|+40.0 [+30.0, +50.0]|700.5 : 140|p &lt; 0.001|1,400|1|" in text
    assert f"|gsm8k|other {escape(HOSTILE)}|+1.0 [−2.0, +4.0]|20 : 6|p = 0.250|1,400|3|" in text
    assert "|gsm8k|base model|+30.0 [+20.0, +40.0]|1,400|1|" in text, "of probability: no test"
    assert "|gsm8k|accuracy|Quiet-STaR, thoughts off|50.0% [40.0%, 62.5%]|1,400|2|" in text
    sentence = "On gsm8k, Quiet-STaR has a higher accuracy than the base model (+40.0 [+30.0, +50.0] points); it "
    assert f"{sentence}cannot be told apart from other {HOSTILE} (+1.0 [−2.0, +4.0] points)." in page.text


def test_chain_of_thought(page: Page):
    assert "|gsm8k|maj@8|50.0%|70.0%|+20.0 [+5.0, +35.0]|32|8|" in page.flat
    finding = "Thinking helps on gsm8k with written reasoning: maj@8 is 50.0% without thoughts and 70.0% with"
    assert f"{finding}, +20.0 points (95% interval +5.0 to +35.0; p = 0.016; 32 questions)." in page.text
    assert "This run has no chain-of-thought figures for commonsense_qa." in page.text
    drawn = fake.votes().query("task == 'gsm8k'").reset_index(drop=True)
    pd.testing.assert_frame_equal(page.csv("votes-1-gsm8k").astype(drawn.dtypes), drawn)


def test_what_was_not_done_or_logged_is_left_out(run: Path, undrawn):
    write(run, "compare/figures.csv", fake.arms().head(0))
    write(run, "compare/comparisons.csv", fake.comparisons().head(0))
    write(run, "chain_of_thought/metrics.json", {})
    (run / "results/chain_of_thought/votes.csv").write_text("\n")
    write(run, "base_model/steps.csv", fake.base_model_steps().head(0))
    write(run, "train/heldout.csv", fake.train_heldout().assign(working_share=None))
    write(run, "train/metrics.json", fake.train() | {"working_share": None})
    unknown = {"spearman": None, "ci_low": None, "ci_high": None}
    write(run, "perplexity/metrics.json", fake.perplexity() | {"agreement": unknown})
    page = Page(run)
    assert "No other ways of training were compared with this run." in page.text
    assert "This run has no chain-of-thought figures: none of its tasks" in page.text and "|maj@" not in page.flat
    assert page.ids("figure")[:3] == ["deciles", "kinds", "positions"], "neither accuracy nor votes"
    assert "heldout-losses" in page.ids("figure") and not {"base-model", "working-share"} & set(page.ids("figure"))
    assert "right working" not in page.text and "ways of training against each other" not in page.text
    assert "The mixing weight or the improvement is the same everywhere" in page.text


def test_every_figure_offers_its_numbers(page: Page):
    figures = page.ids("figure")
    training = ["heldout-losses", "working-share", "losses", "mixing-weight", "reward", "positive-advantages"]
    training += ["thought-entropy", "objective", "base-model"]
    assert figures == ["accuracy", "votes-1-gsm8k", *GROUPS, "density", *training]
    assert sum(tag == "svg" for tag, _ in page.elements) == len(figures)
    assert all(len(page.csv(name)) for name in figures)
    shares = fake.train_heldout()[["step", "working_share"]].astype({"step": float})
    pd.testing.assert_frame_equal(page.csv("working-share"), shares)
    assert page.csv("reward")["reward"].tolist() == pytest.approx(fake.train_steps()["reward"].tolist())
    assert page.csv("deciles")["improvement"].tolist() == pytest.approx([0.05 * i - 0.03 for i in range(10)])
    assert page.csv("accuracy")["arm"].tolist() == fake.arms().query("measure == 'accuracy'")["arm"].tolist()
    assert len(page.csv("objective")) == fake.STEPS


def test_a_label_is_text_and_no_formula(page: Page):
    """A figure's words come from data: NA is a kind of token, and a dollar sign starts no mathematics."""
    drawing = page.part('<figure id="kinds">', "</figure>")
    assert ">NA</text>" in drawing and ">$x_1$</text>" in drawing and "&lt;script&gt;" in drawing
    assert page.csv("kinds")["group"].tolist() == GROUPS["kinds"][::-1], "the largest improvement first"
    assert ">Quiet-STaR, thoughts off</text>" in page.part('<figure id="accuracy">', "</figure>")


def test_figures_follow_the_colour_scheme(page: Page):
    """No colour of the drawings' own: ink, series and grid all come from the page."""
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))
    assert all(colour in drawings for colour in ("currentColor", "var(--thought)", "var(--plain)", "var(--quiet)"))
    assert re.findall(r"(?:fill|stroke|color): *#\w+", drawings) == []


def test_where_thoughts_helped(page: Page):
    assert "|tokens helped by more than 0.01 nats|20.0% [18.0%, 22.0%]|" in page.flat
    assert "|tokens hurt by more than that|10.0% [9.0%, 11.0%]|" in page.flat
    together = "a larger mixing weight goes with a larger improvement: Spearman’s ρ 0.31 [0.25, 0.37]."
    assert f"Among tokens whose loss changed by more than 0.01 nats, {together}" in page.text
    assert "Largest improvement: positions 4–7, +0.070 [+0.050, +0.090] nats." in page.text
    assert " Smallest: positions 1, −0.030 [−0.050, −0.010] nats." in page.text
    assert "|−0.5 to 0.1|−0.030 [−0.050, −0.010]|0.300|12.5%|6.2%|1,234|50.0%|" in page.flat
    assert page.text.count("regression to the mean") == 1


def test_density_is_a_mark_a_cell(page: Page):
    drawing = page.part('<figure id="density">', "</figure>")
    gains, losses = (
        re.findall(rf"fill: var\(--{name}\)(?:; opacity: ([\d.]+))?", drawing) for name in ("thought", "plain")
    )
    assert len(gains) == 3 and len(losses) == 1
    assert [float(found or 1) for found in gains] == sorted((float(found or 1) for found in gains), reverse=True)
    assert "|1 to 4,000 tokens a cell|" in page.flat


def test_extremes_are_the_first_ranks_once(page: Page):
    gains = page.part("Tokens that gained most</h4>", "</ol>")
    assert re.findall(r"thought gain (\d)", gains) == ["2", "3", "4", "5", "6"]
    assert flat(gains).startswith("Tokens that gained most|+2.750 nats |of 3.000|…")
    assert '<b class="help"> NA</b>' in gains
    lost = flat(page.part("Passages that lost most</h4>", "</ol>"))
    assert "|passage loss 2⏎ &lt;script&gt;" in lost and "|−2.750 nats per token |" in lost
    assert len(page.csv("extremes")) == 32


def test_examples_are_the_extremes_and_the_median(page: Page):
    for name in ("gsm8k", "commonsense_qa"):
        for chosen, index, probability in (("largest", 5, "85.0%"), ("median", 3, "65.0%"), ("smallest", 0, "35.0%")):
            card = page.part(f'{name} <span class="unit">{chosen}', "</article>")
            assert f"Question {index} of {name}?" in card and f"thought {index} of {name}" in card
            verdict = "A, right" if index > 2 else "—, wrong"
            assert "|before training|—, wrong|25.0%|without thoughts|—, wrong|" in flat(card)
            assert f"|with thoughts|{verdict}|{probability}|" in flat(card)
    only = fake.predictions().query("task == 'gsm8k' and index == 0")
    assert len(quotes.examples(only, METHODS["quiet_star"])) == 1, "one question is shown once"


def test_token_map(page: Page):
    """Two passages in reading order, each one tab stop; what is behind a token, and its colour."""
    assert [cell["data-token"] for cell in page.cells[:8]] == ["Q", ":", " The", " lemur", "⏎\n", "⏎\n⏎\n", "⇥", "␣␣"]
    assert ">⏎\n</span>" in page.html and ".passage { white-space: pre-wrap" in page.html, "a line breaks"
    assert "in text 0" in page.cells[0]["data-thought"] and "in text 1" in page.cells[-1]["data-thought"]
    assert [cell["tabindex"] for cell in page.cells] == (["0"] + ["-1"] * (PASSAGE - 1)) * 2

    every = fake.tokens().sort_values(["text", "position"])
    full = (every["nll_no_thought"] - every["nll_thought"]).abs().quantile(0.95)  # of all texts
    assert f"helped, {full:.2f} nats or more" in page.text
    table = every.head(2 * PASSAGE)
    improvement = table["nll_no_thought"] - table["nll_thought"]
    for cell, better, row in zip(page.cells, improvement, table.itertuples(), strict=True):
        assert cell["class"] == ("t help" if better >= 0 else "t hurt")
        assert float(cell["style"].removeprefix("--s:")) == pytest.approx(min(abs(better) / full, 1), abs=0.0051)
        assert cell["data-without"].replace("−", "-") == f"{row.nll_no_thought:.3f}"
        assert cell["data-with-thought"].replace("−", "-") == f"{row.nll_thought:.3f}"
        assert float(cell["data-improvement"].replace("−", "-")) == pytest.approx(better, abs=6e-4)
        assert cell["data-weight"] == "0.250"
        assert ("data-clearest" in cell) == (better == improvement[table["text"] == row.text].max())
    unchanged = quotes.heat_map(every.assign(nll_thought=every["nll_no_thought"]), passages=1)["passages"][0]
    assert {row["strength"] for row in unchanged} == {0}, "no colour"


def test_how_sure(page: Page):
    assert "1,400 questions of gsm8k; 1,400 questions of commonsense_qa; 120 held-out texts" in page.text
    assert "1 to 4 seeds for each way of training, 1,400 questions for each task." in page.text
    assert "The intervals of the ways of training cover the choice of seed as well" in page.text
    bars = sum(map(len, GROUPS.values()))
    assert "|ways of training against each other|8|thoughts on against off: accuracy and probability" in page.flat
    assert f"|improvement by group of held-out tokens|{bars}|" in page.flat
    total = 8 + 4 + 3 + 1 + bars
    assert f"This page shows {total} differences with an interval." in page.text
    assert f"about {total / 20:.0f} of them (one in twenty)" in page.text

    one_seed = fake.arms().assign(seeds=1.0).to_dict("records")
    assert certainty.seeds_sentence(one_seed).startswith("1 seed for each way of training, 1,400 questions")
    assert certainty.coverage_sentence(one_seed) == "They do not cover the choice of seed."


def test_corpus_text_is_escaped(page: Page):
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert "<script>alert" not in page.html and "<b>\n" not in page.html
    assert page.cells[8]["data-token"] == HOSTILE
    assert page.cells[0]["data-thought"] == f"a primate lives in text 0 {HOSTILE}⏎\n"
    assert f"Q: Question 5 of gsm8k? {HOSTILE}\n(A) trees" in page.text
    assert f"thought 5 of gsm8k {HOSTILE}" in page.text


def test_task_names_are_escaped(run: Path):
    write(run, "evaluate/metrics.json", {HOSTILE: fake.task(0.1, 0, 1)})
    write(run, "chain_of_thought/metrics.json", {HOSTILE: fake.reasoning()})
    write(run, "chain_of_thought/votes.csv", fake.votes().replace("gsm8k", HOSTILE))
    write(run, "compare/figures.csv", fake.arms().replace("gsm8k", HOSTILE))
    page = Page(run)
    assert "<script>alert" not in page.html
    assert HOSTILE in [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"]


def test_parameters_verbatim_and_versions(page: Page):
    text = (page.file.parents[1] / "params.yaml").read_text()
    assert text.startswith("# <b>\n") and text.partition("plan:")[0].rstrip() in page.text
    assert "policy_weight: 100.0" in page.text and "device_memory" not in page.text, "no stage depends on `plan`"
    for package in ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas"):
        assert f"|{package}|{version(package)}|" in page.flat


def test_needs_nothing_from_outside(page: Page):
    names = ("src", "href", "srcset", "action", "xlink:href")
    links = [attributes[name] for _, attributes in page.elements for name in names if name in attributes]
    assert links and [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import|https?://", page.html) == []
    assert "default-src 'none'" in page.html


def test_ids_are_unique_and_links_resolve(page: Page):
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    inner = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page.html)
    assert inner and {first or second for first, second in inner} <= set(ids)
    skips = [a["href"].removeprefix("#") for tag, a in page.elements if tag == "a" and a.get("class") == "skip"]
    assert skips == ["trained", "certainty"]
    assert re.search('href="#certainty">Skip.*id="token-map".*id="certainty"', page.html, flags=re.DOTALL)


def test_sections_and_contents_are_the_same(pages: dict[str, Page]):
    for one in pages.values():
        assert one.ids("section") == ["trained", "helped", "where", "certainty", "training", "setting"]
        assert re.findall(r'href="#(\w+)"', one.part("<nav", "</nav>")) == one.ids("section")


def test_pauses_have_figures_but_no_words(pages: dict[str, Page]):
    page = pages["pause"]
    assert "|Did pausing help?|" in page.flat and "|method|pause tokens|" in page.flat
    assert "Pausing helps on gsm8k: accuracy is 10.0% without pauses and 90.0% with, +80.0 points" in page.text
    assert "On gsm8k, training with pauses has a higher accuracy than the base model" in page.text
    assert "|Accuracy: pauses against the others|" in page.flat
    assert "the thought before" not in page.text and "thoughts add" not in page.text
    training = ["heldout-losses", "losses", "mixing-weight", "base-model"]
    assert page.ids("figure") == ["accuracy", "votes-1-gsm8k", *GROUPS, "density", *training]
    assert {cell["data-thought"] for cell in page.cells} == {""}
    assert 'data-slot="thought"' not in page.html
    questions = page.part("<h3>Questions</h3>", "<h3")
    assert "<mark>" not in questions and "|with pauses|A, right|" in flat(questions)


def test_a_run_without_thoughts_claims_nothing_about_them(pages: dict[str, Page]):
    page = pages["no_thought"]
    assert "it was trained without thoughts, so it alone cannot answer the question." in page.text
    assert re.findall(r"Thinking (?:helps|hurts)|Undecided on", page.text) == []
    assert "with thoughts" not in page.text and "thoughts add" not in page.text
    assert "On gsm8k, training without thoughts has a higher accuracy than the base model" in page.text
    assert "This run was trained without thoughts (method no_thought)" in page.text
    assert page.ids("figure") == ["accuracy", "votes-1-gsm8k", "heldout-losses", "losses", "base-model"]
    assert page.cells == [] and "<script" not in page.html
    assert "|gsm8k|accuracy|9.5%|10.0%|1,400|" in page.flat and "|loss, nats per token|1.234|perplexity|" in page.flat
    assert "|gsm8k|maj@8|50.0%|32|8|" in page.flat
    assert set(page.csv("votes-1-gsm8k")["way"]) == {"no_thought"}
    assert "gained most probability from training" in page.text
    assert "|before training|—, wrong|25.0%|after training|—, wrong|" in page.flat


def test_a_run_without_thoughts_needs_no_file_on_thoughts(tmp_path: Path, undrawn):
    for path in (write_run(tmp_path, "no_thought") / "results/perplexity").iterdir():
        if path.name != "metrics.json":
            path.unlink()
    Page(tmp_path)


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
