"""The page: its numbers, its figures, escaping, what other methods show, and that it needs nothing but itself."""

import math
import re
import shutil
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import fake_outputs as fake
import pandas as pd
import pytest
from fake_outputs import GROUPS, HOSTILE, PASSAGE, TABLES, TRAIN, write, write_run
from report_page import Page, flat

from pipeline.errors import UserError
from pipeline.report import quotes, results
from pipeline.report.method import METHODS
from pipeline.report.page import write_report
from pipeline.report.reading import read_csv, read_json, read_parquet


def test_what_was_trained(page: Page):
    assert "|method|Quiet-STaR|base model|qwen3 of 3 layers, from scratch|" in page.flat
    assert "|parameters|1,234,567|text|micro-world, seed 1|tokens of text read|983,040|" in page.flat
    assert "|mean length of a thought|4.5 tokens|" in page.flat
    assert "in units of the base model’s: 7.5 (Quiet-STaR) and 97 (Quiet-STaR, mean of 16)." in page.text
    assert "|thoughts that contain the right working|40.0% → 95.0%|" in page.flat
    assert "A language model of 1.2 million parameters read 983,040 tokens of text. A hidden thought of" in page.text
    assert "|Warning.|step 41: " in page.flat and page.flat.count("|Warning.|") == 1


def test_a_base_model_and_a_text_from_the_hub(run: Path, undrawn):
    (run / "params.yaml").write_text(re.sub(r"(path|revision): null", r"\1: some/\1", fake.HUB_PARAMS))
    text = Page(run).flat
    assert "|base model|some/path at some/revision|" in text and "|text|openai/gsm8k, main, train|" in text


def test_the_claim_holds_only_where_every_interval_is_above_zero(page: Page):
    size, policy = "(+40.0 [+30.0, +50.0] points)", "training without the policy loss"
    others = f"untrained thoughts {size}, the model before training {size} and the same model with the thoughts of"
    more = "Quiet-STaR answers more questions right than"
    assert f"On gsm8k the claim holds: {more} {policy} {size}, {others} other questions {size}." in page.text
    undecided = f"it is not shown to differ from {policy} (+1.0 [−2.0, +4.0] points)."
    assert f"On commonsense_qa the claim fails: {more} {others} other questions {size}; {undecided}" in page.text


@pytest.mark.parametrize(
    "low, says, verdict",
    [(0.001, "holds: Quiet-STaR answers more", "above"), (-0.04, "fails: Quiet-STaR answers fewer", "below")]
    + [(low, "fails: Quiet-STaR is not shown to differ from", "undecided") for low in (-0.03, -0.02, 0.0)],
)
def test_verdicts_follow_the_interval(run: Path, low: float, says: str, verdict: str):
    """The same rows of held-out text, of which harm is allowed up to 0.005 nats."""
    write(run, "compare/comparisons.csv", fake.comparisons().assign(low=low, high=low + 0.03))
    found = results.read_results(run / "results/compare", METHODS["quiet_star"])
    assert says in results.claims(found)[0].text
    said = [*results.claims(found), *results.heldout_findings(found)]
    assert [finding.verdict for finding in said] == [verdict] * 4
    (harm,) = results.harm_findings(found)
    assert harm.verdict == {0.001: "above", 0.0: "above", -0.04: "below"}.get(low, "undecided")


@pytest.mark.filterwarnings("error")
def test_held_out_text_of_one_document_has_no_intervals(run: Path):
    """Everything is drawn."""
    for name in ("figures", "comparisons"):
        table = getattr(fake, "arms" if name == "figures" else name)()
        table.loc[table["task"] == "heldout", ["low", "high"]] = None
        write(run, f"compare/{name}.csv", table)
    for name, names in GROUPS.items():
        write(run, f"{TABLES}/{name}.csv", fake.groups(names).assign(ci_low=None, ci_high=None))
    text = Page(run).text
    assert "is not shown to be harmless" in text and "changed by +0.010 (no interval) nats a token (0.005 is" in text
    assert not re.search(r"\bnan\b", text)


def test_parts_of_a_task_are_no_tasks_of_the_page(run: Path):
    arms = fake.arms()
    before = results.read_results(run / "results/compare", METHODS["quiet_star"])
    part = arms[(arms["task"] == "gsm8k") & (arms["measure"] == "accuracy")].assign(task="gsm8k/3")
    write(run, "compare/figures.csv", pd.concat([arms, part]))
    after = results.read_results(run / "results/compare", METHODS["quiet_star"])
    assert len(part) and after.figures.keys() == before.figures.keys() and after.tasks == before.tasks


def test_every_arm_in_order(page: Page):
    best, few = "90.0% [80.0%, 95.0%]", "50.0% [40.0%, 55.0%], 312 questions"
    assert f"|arm|gsm8k|commonsense_qa|Quiet-STaR|{best}|{best}|Quiet-STaR, swapped|" in page.flat
    assert f"|Quiet-STaR, same last token|{few}|{few}|" in page.flat
    names = re.findall(r'<th scope="row">(.*?)</th>', page.part('id="arms"', "</table>"))
    ways = ["swapped", "random", "own, where same last", "same last token", "thoughts off"]
    controls = ["no policy loss", "pauses", "no thoughts", "untrained thoughts", "untrained thoughts, sampled"]
    controls += ["untrained thoughts, mean of 16", "before training", "other &lt;script&gt; $x_1$"]
    assert names == ["Quiet-STaR", *(f"Quiet-STaR, {way}" for way in ways), *controls]
    assert "|no policy loss|+40.0 [+30.0, +50.0], p &lt; 0.001|+1.0 [−2.0, +4.0]|" in page.flat, "no test, no p-value"
    assert '<td class="number undecided" data-label="commonsense_qa">+1.0' in page.html
    assert "[+30.0,\N{NO-BREAK SPACE}+50.0], p\N{NO-BREAK SPACE}&lt;" in page.file.read_text(), "no line breaks inside"
    assert (
        "1,400 questions in 700 groups of like questions; held-out text: 12,340 tokens in 120 texts; 2 seeds"
        in page.text
    )


def test_content_and_harm(page: Page):
    noted = "p &lt; 0.001, 75.0% of it"
    half = f"+40.0 [+30.0, +50.0], {noted}"
    assert (
        f"|Quiet-STaR, swapped|{half}|{half}|+0.400 [+0.300, +0.500], {noted}|+0.400 [+0.300, +0.500], {noted}|"
        in page.flat
    )
    assert "|no policy loss, swapped|+40.0 [+30.0, +50.0], p &lt; 0.001|+40.0" in page.flat, (
        "no share where none is given"
    )
    rows = fake.comparisons()
    own = rows["arm"].str.split("/").str[0] == rows["against"].str.split("/").str[0]
    content = own & rows["measure"].isin(["accuracy", "loss", "loss_after_marker"])
    others = (rows["arm"] == "quiet_star") & ~own & (rows["task"] != "heldout")
    before = (rows["task"] == "heldout") & (rows["against"] == "before")
    total = (content | others | before).sum() + 3 + sum(map(len, GROUPS.values()))
    assert f"Many comparisons. {total} differences here have an interval." in page.text
    assert "With thoughts before every token the loss is lower than that of the model before training" in page.text
    assert "With thoughts after the marker alone the loss is lower" in page.text and "the gain is +0.400" in page.text
    harm = "the loss on held-out text changed by +0.010 [−0.010, +0.030] nats a token, so the harm is at most +0.030"
    assert f"Training is not shown to be harmless: without thoughts {harm} (0.005 is allowed)." in page.text
    off = "1.300 [1.200, 1.350]|−0.010 [−0.030, +0.010]"
    assert f"|Quiet-STaR, thoughts off|{off}|{off}|" in page.flat
    gain = "+0.400 [+0.300, +0.500], p &lt; 0.001"
    assert f"|Quiet-STaR|1.000 [0.900, 1.050]|{gain}|0.900 [0.800, 0.950]|{gain}|" in page.flat
    assert "loss, thoughts after the marker alone" in page.flat


def test_without_a_mixing_weight_every_gain_is_zero(run: Path):
    """Where thoughts change nothing, no number, colour or word of the page has a gain."""
    gains = ("difference", "improvement", "low", "high", "ci_low", "ci_high")
    for path in [run / "results/compare/comparisons.csv", *(run / "results" / TABLES).glob("[dkpw]*.csv")]:
        table = pd.read_csv(path, keep_default_na=False)
        table.assign(**{name: 0.0 for name in gains if name in table}).to_csv(path, index=False)
    for name, table in {"steps": fake.train_steps(), "heldout": fake.train_heldout()}.items():
        write(run, f"{TRAIN}/{name}.csv", table.assign(talk_loss=table["base_loss_ahead"]))
    tokens = fake.tokens()
    write(run, f"{TABLES}/../tokens.parquet", tokens.assign(nll_thought=tokens["nll_no_thought"]))
    write(run, f"{TABLES}/extremes.csv", fake.extremes().head(0))
    write(run, "chain_of_thought/metrics.json", {})
    page = Page(run)
    shown = re.sub("<svg.*?</svg>", "", page.part('id="claim"', 'id="setting"'), flags=re.DOTALL)
    assert set(re.findall(r"[+−]\d[\d.]*", shown)) == {"−0.5"}, "which is a mixing weight"
    assert "|0.000 [0.000, 0.000]|" in page.flat and "|0.0 [0.0, 0.0], p &lt; 0.001|" in page.flat
    coloured = re.findall('class="(?:number )?(?:above|below)"', page.html)
    assert coloured == ['class="above"'] and "Training did no harm" in page.text
    assert page.text.count("the claim fails") == 2
    assert {(cell["data-improvement"], cell["style"]) for cell in page.cells} == {("0.000", "--s:0.00")}
    for name in ("heldout-losses", "losses"):
        assert page.csv(name)["talk_loss"].tolist() == page.csv(name)["base_loss_ahead"].tolist()


def test_chain_of_thought(page: Page):
    assert "|gsm8k, maj@8|50.0%|70.0%|+20.0 [+5.0, +35.0], p = 0.016|32|8|" in page.flat
    assert "This run has no chain-of-thought figures for commonsense_qa." in page.text
    assert page.csv("votes-1-gsm8k")["accuracy"].tolist() == fake.votes().query("task == 'gsm8k'")["accuracy"].tolist()


def test_what_was_not_done_or_logged_is_left_out(run: Path, undrawn):
    for name in ("figures", "comparisons", "seeds"):
        write(run, f"compare/{name}.csv", pd.read_csv(run / f"results/compare/{name}.csv").head(0))
    write(run, "chain_of_thought/metrics.json", {})
    (run / "results/chain_of_thought/votes.csv").write_text("\n")
    write(run, "base_model/steps.csv", fake.base_model_steps().head(0))
    write(run, f"{TRAIN}/heldout.csv", fake.train_heldout() * [1, 1, 1, math.nan, math.nan, 1])
    write(run, f"{TRAIN}/metrics.json", fake.train() | {"working_share": None})
    unknown = {"spearman": None, "ci_low": None, "ci_high": None}
    write(run, f"{TABLES}/metrics.json", fake.perplexity() | {"agreement": unknown})
    page = Page(run)
    assert "This run has no chain-of-thought figures: none of its tasks" in page.text and "|maj@" not in page.flat
    assert "the claim" not in page.text.partition("The claim:")[2], "nothing is said of tasks that there are none of"
    figures = page.ids("figure")
    assert figures[0] == "heldout-losses" and not {"base-model", "working-share"} & set(figures)
    assert "The mixing weight or the improvement is the same everywhere" in page.text


def test_every_figure_offers_its_numbers(page: Page):
    figures = page.ids("figure")
    training = ["heldout-losses", "working-share", "losses", "mixing-weight", "reward", "positive-advantages"]
    training += ["thought-entropy", "objective", "base-model"]
    seeds = ["seeds-1-gsm8k", "seeds-2-commonsense-qa", "seeds-3-heldout"]
    assert figures == [*seeds, *training, *GROUPS, "density", "votes-1-gsm8k"]
    assert sum(tag == "svg" for tag, _ in page.elements) == len(figures)
    assert all(len(page.csv(name)) for name in figures)
    drawings = "".join(re.findall(r"<svg.*?</svg>", page.html, flags=re.DOTALL))
    assert all(colour in drawings for colour in ("currentColor", "var(--thought)", "var(--plain)", "var(--quiet)"))
    assert re.findall(r"(?:fill|stroke|color): *#\w+", drawings) == [], "colours come from the page: light or dark"
    shares = fake.train_heldout()["working_share_animals"]
    assert page.csv("working-share")["working_share_animals"].tolist() == shares.tolist()
    assert page.csv("deciles")["improvement"].tolist() == pytest.approx([0.05 * i - 0.03 for i in range(10)])
    every = fake.seeds().query("task == 'gsm8k' and measure == 'accuracy'")
    assert page.csv("seeds-1-gsm8k")["value"].tolist() == pytest.approx(every["value"].tolist())


def test_a_label_is_text_and_no_formula(page: Page):
    """A figure's words come from data: NA is a kind of token, and a dollar sign starts no mathematics."""
    drawing = page.part('<figure id="kinds">', "</figure>")
    assert ">NA</text>" in drawing and ">$x_1$</text>" in drawing and "&lt;script&gt;" in drawing
    assert page.csv("kinds")["group"].tolist() == GROUPS["kinds"][::-1], "the largest improvement first"
    assert ">Quiet-STaR, thoughts off</text>" in page.part('<figure id="seeds-1-gsm8k">', "</figure>")


def test_where_thoughts_helped(page: Page):
    assert "|tokens helped by more than 0.01 nats|20.0% [18.0%, 22.0%]|" in page.flat
    assert "|tokens hurt by more than that|10.0% [9.0%, 11.0%]|" in page.flat
    together = "a larger mixing weight goes with a larger improvement: Spearman’s ρ 0.31 [0.25, 0.37]."
    assert f"Among tokens whose loss changed by more than 0.01 nats, {together}" in page.text
    assert "Largest improvement: positions 4–7, +0.070 [+0.050, +0.090] nats." in page.text
    assert " Smallest: positions 1, −0.030 [−0.050, −0.010] nats." in page.text
    assert "|−0.5 to 0.1|−0.030 [−0.050, −0.010]|0.300|12.5%|6.2%|1,234|50.0%|" in page.flat
    assert page.text.count("Difficulty is the loss of the model before training") == 1
    drawing = page.part('<figure id="density">', "</figure>")
    shades = [drawing.count(f"fill: var(--{name})") for name in ("thought", "plain")]
    assert shades == [3, 1] and "|1 to 4,000 tokens a cell|" in page.flat, "a mark a cell"


def test_extremes_are_the_first_ranks_once(page: Page):
    gains = page.part("Tokens that gained most</h4>", "</ol>")
    assert re.findall(r"thought gain (\d)", gains) == ["2", "3", "4", "5", "6"]
    assert flat(gains).startswith("Tokens that gained most|+2.750 nats |before training 3.000|…")
    assert '<b class="help"> NA</b>' in gains
    lost = flat(page.part("Passages that lost most</h4>", "</ol>"))
    assert "|passage loss 2⏎ &lt;script&gt;" in lost and "|−2.750 nats per token |" in lost
    said = flat(page.part("Tokens with the largest content effect</h4>", "</ol>"))
    assert said.startswith("Tokens with the largest content effect|+0.900 nats |improvement +2.750|…")
    assert len(page.csv("extremes")) == 48


def test_examples_are_the_extremes_and_the_median(page: Page):
    for name in ("gsm8k", "commonsense_qa"):
        for chosen, index, probability in (("largest", 5, "85.0%"), ("median", 3, "65.0%"), ("smallest", 0, "35.0%")):
            card = page.part(f'{name} <span class="unit">{chosen}', "</article>")
            assert f"Question {index} of {name}?" in card and f"thought {index} of {name}" in card
            verdict = "A, right" if index > 2 else "—, wrong"
            assert f"|with thoughts|{verdict}|{probability}|with another’s thought|—, wrong|25.0%|" in flat(card)
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


def test_corpus_text_is_escaped(page: Page):
    assert [tag for tag, _ in page.elements].count("script") == 1, "the page's own"
    assert "<script>alert" not in page.html and "<b>\n" not in page.html
    assert page.cells[8]["data-token"] == HOSTILE
    assert page.cells[0]["data-thought"] == f"a primate lives in text 0 {HOSTILE}⏎\n"
    assert f"Q: Question 5 of gsm8k? {HOSTILE}\n(A) trees" in page.text
    assert f"thought 5 of gsm8k {HOSTILE}" in page.text


def test_task_names_are_escaped(run: Path):
    write(run, "chain_of_thought/metrics.json", {HOSTILE: fake.reasoning()})
    write(run, "chain_of_thought/votes.csv", fake.votes().replace("gsm8k", HOSTILE))
    for name, table in {"figures": fake.arms(), "seeds": fake.seeds(), "comparisons": fake.comparisons()}.items():
        write(run, f"compare/{name}.csv", table.replace("gsm8k", HOSTILE))
    page = Page(run)
    assert "<script>alert" not in page.html and f"On {HOSTILE} the claim holds" in page.text
    assert [attributes.get("aria-label") for tag, attributes in page.elements if tag == "svg"].count(HOSTILE) == 2


def test_parameters_verbatim_and_versions(page: Page):
    text = (page.file.parents[1] / "params.yaml").read_text()
    assert text.startswith("# <b>\n") and text.partition("plan:")[0].rstrip() in page.text
    assert "policy_weight: " in page.text and "device_memory" not in page.text, "no stage depends on `plan`"
    for package in ("torch", "transformers", "datasets", "dvc", "hydra-core", "pandas"):
        assert f"|{package}|{version(package)}|" in page.flat


def test_needs_nothing_from_outside_and_its_own_links_resolve(page: Page):
    names = ("src", "href", "srcset", "action", "xlink:href")
    links = [attributes[name] for _, attributes in page.elements for name in names if name in attributes]
    assert links and [link for link in links if not link.startswith(("#", "data:"))] == []
    assert re.findall(r"url\((?!#)[^)]*\)|@import|https?://", page.html) == []
    assert "default-src 'none'" in page.html
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert [name for name, count in ids.items() if count > 1] == []
    inner = re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', page.html)
    assert inner and {first or second for first, second in inner} <= set(ids)
    skips = [a["href"].removeprefix("#") for tag, a in page.elements if tag == "a" and a.get("class") == "skip"]
    assert skips == ["claim", "reasoning"]
    assert re.search('href="#reasoning">Skip.*id="token-map".*id="reasoning"', page.html, flags=re.DOTALL)


def test_sections_and_contents_are_the_same(pages: dict[str, Page]):
    for one in pages.values():
        assert " ".join(one.ids("section")).startswith("claim arms content heldout seeds training where reasoning ")
        assert re.findall(r'href="#(\w+)"', one.part("<nav", "</nav>")) == one.ids("section")


def test_pauses_have_figures_but_no_words(pages: dict[str, Page]):
    page = pages["pause"]
    assert "|method|pauses|" in page.flat and "This run is a control, so nothing is claimed of it." in page.text
    assert "the claim" not in page.text and "With pauses before every token the loss is lower than that" in page.text
    assert "|Accuracy: pauses minus each other arm, points|" in page.flat
    assert "the thought before" not in page.text and "thoughts add" not in page.text
    training = ["heldout-losses", "losses", "mixing-weight", "base-model"]
    assert page.ids("figure")[3:] == [*training, *GROUPS, "density", "votes-1-gsm8k"]
    assert {cell["data-thought"] for cell in page.cells} == {""}
    assert 'data-slot="thought"' not in page.html
    questions = page.part("<h3>Questions</h3>", "<h3")
    assert "<mark>" not in questions and "|with pauses|A, right|" in flat(questions)


def test_a_run_without_thoughts_claims_nothing_about_them(pages: dict[str, Page]):
    page = pages["no_thought"]
    assert "This run is a control" in page.text and "the claim" not in page.text
    assert "with thoughts" not in page.text.lower() and "thoughts add" not in page.text
    assert "Training did no harm: without thoughts the loss" in page.text
    assert "This run was trained without thoughts (method no_thought)" in page.text
    assert page.ids("figure")[3:] == ["heldout-losses", "losses", "base-model", "votes-1-gsm8k"]
    assert page.cells == [] and "<script" not in page.html
    assert set(page.csv("votes-1-gsm8k")["way"]) == {"no_thought"}


def test_a_run_without_thoughts_needs_no_file_on_thoughts(tmp_path: Path, undrawn):
    shutil.rmtree(write_run(tmp_path, "no_thought") / "results/perplexity")
    (tmp_path / "results/evaluate/no_thought-1/predictions.parquet").unlink()
    Page(tmp_path)


def test_every_file_is_needed(run: Path, undrawn):
    for path in filter(Path.is_file, (run / "results").rglob("*")):
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(UserError, match=f"^{path}: no such file$"):
            write_report(run / "params.yaml", run / "results", run / "page/index.html")
        path.write_bytes(content)
    assert not (run / "page").exists()


def test_files_of_another_kind(tmp_path: Path):
    path = tmp_path / "file"
    for content in (b"\xff\xfe\x00 not\n this", b"", b"[" * 100_000):
        path.write_bytes(content)
        for read in (read_json, lambda path: read_csv(path, "a"), lambda path: read_parquet(path, "a")):
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
