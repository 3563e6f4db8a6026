"""Presets: every combination is a run's parameters, and options that DVC can read."""

import itertools
import sys
from pathlib import Path

import pytest
from dvc.cli import DvcParserError
from dvc.cli import parse_args as dvc_arguments
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from pipeline import params
from pipeline.errors import UserError
from pipeline.preset import options as preset
from pipeline.preset.__main__ import main

ROOT = Path(__file__).parents[1]
GROUPS = [
    [f"{group}={path.stem}" for path in sorted((ROOT / f"pipeline/preset/groups/{group}").glob("*.yaml"))]
    for group in ("model", "data", "scale", "hardware", "method")
]
PAIRS = [list(words) for some in itertools.combinations(GROUPS, 2) for words in itertools.product(*some)]
WHOLE = [list(words) for words in itertools.product(*GROUPS[:-1])]  # a method meets each other group in the pairs


def printed(arguments: list[str], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The `key=value` of each `-S`."""
    monkeypatch.setattr(sys, "argv", ["preset", *arguments])
    main()
    words = capsys.readouterr().out.split()
    assert set(words[::2]) == {"-S"}
    return words[1::2]


@pytest.mark.parametrize("groups", [[group] for group in preset.known()] + WHOLE[::47], ids=" ".join)
def test_what_is_printed_is_a_runs_parameters_as_dvc_reads_them(groups: list[str], capsys, monkeypatch):
    """`preset.options` refuses what the schema does, and what a command line cannot hold."""
    shown = printed(groups, capsys, monkeypatch)
    read = {o.key_or_group: o.value() for o in OverridesParser.create().parse_overrides(shown)}  # DVC's own parser
    assert read == preset.options(groups)


def test_stages_are_a_word_that_dvc_reads(capsys, monkeypatch):
    word = "train.stages=[{thought_tokens:9,lookahead:4,learning_rate:2e-06,steps:50}]"
    (shown,) = printed(["arms.methods=[quiet_star]", word], capsys, monkeypatch)[1:]
    assert shown == word
    (stage,) = OverridesParser.create().parse_override(shown).value()
    assert stage == {"thought_tokens": 9, "lookahead": 4, "learning_rate": 2e-6, "steps": 50}


@pytest.mark.parametrize("word", ["scale=smok", "train.steps=0"])
def test_dvc_does_not_run_where_a_preset_is_refused(word: str, capsys, monkeypatch):
    """`dvc exp run $(...)` would else take params.yaml as it is, and overwrite its results."""
    monkeypatch.setattr(sys, "argv", ["preset", word])
    with pytest.raises(UserError):
        main()
    with pytest.raises(DvcParserError):
        dvc_arguments(["exp", "run", *capsys.readouterr().out.split()])


@pytest.mark.slow
@pytest.mark.parametrize("groups", PAIRS + WHOLE, ids=" ".join)
def test_every_combination_is_a_runs_parameters(groups: list[str]):
    assert preset.options(groups)


# each parameter of the paper's run, and the words of method.md that say so
PAPER = {
    "base_model.path": ("mistralai/Mistral-7B-v0.1", "Mistral 7B, continued pretraining on OpenWebMath or C4"),
    "corpus.hub.train.path": ("open-web-math/open-web-math", "continued pretraining on OpenWebMath or C4"),
    "tokenize.span": (256, "random 256-token span per document (padded if shorter)"),
    "tokenize.packed": (False, "random 256-token span per document (padded if shorter)"),
    "train.thought_tokens": (5, '"8 thought tokens" in their model name is `n_ahead = 8`, so K = 5'),
    "train.lookahead": (4, "(thought tokens, ahead) pairs studied: 8/4, 10/4, 12/4, 16/8, 24/12"),
    "train.rationales": (2, "r = 2 in the released script"),
    "train.thinking.where": ("every", "After every position i of a text x[0..n-1], in parallel"),
    "train.meta_token_text": ("---", 'initialised to embedding("---") / 100'),
    "train.meta_token_scale": (100.0, "used as `scale * e` with scale = 100"),
    "train.policy_weight": (1e6, "beta = 1e6 at learning rate 1e-6"),
    "train.advantage": ("positive", "then A = max(A, 0) (negative advantages are dropped: more stable)"),
    "train.thoughts_end": (False, "sample r thoughts (rationales) of K tokens"),
    "train.policy_temperature": (3.0, "log_softmax(logits / 3)[t_j]: temperature 3 in the REINFORCE term"),
    "train.learning_rate": (1e-6, "AdamW, learning rate 1e-6"),
    "train.mixing_head_learning_rate": (1e-6, "AdamW, learning rate 1e-6"),
    "train.warmup_steps": (20, "warm-up 20 steps"),
    "train.weight_decay": (0.001, "weight decay 0.001"),
    "train.batch_size": (8, "batch size 8 texts (gradient accumulation keeps it fixed)"),
    "train.accumulation": (1, "batch size 8 texts (gradient accumulation keeps it fixed)"),
    "train.gradient_clip": (1.0, "gradient-norm clip 1.0"),
    "train.clip": ("together", "gradient-norm clip 1.0"),
    "train.steps": (100, "100 optimizer steps"),
    "evaluate.questions": (None, "averaged over questions"),
    "evaluate.thought_temperature": (0.0, "evaluation is meant to be greedy"),
    "chain_of_thought.questions": (None, "**cot-maj@8**"),
    "chain_of_thought.samples": (8, "majority over 8 samples"),
    "chain_of_thought.temperature": (0.9, "sample (temperature 0.9)"),
    "chain_of_thought.thought_temperature": (0.0, "evaluation is meant to be greedy"),
    "chain_of_thought.new_tokens": (384, "up to 384 tokens with a thought before each"),
    "chain_of_thought.answer_tokens": (12, "read the first integer of up to 12 more tokens"),
}
METHOD = ROOT.parent / "shared/method.md"


def test_the_papers_preset_is_the_papers_setting():
    composed = preset.options(["model=mistral-7b", "data=openwebmath", "scale=paper"])
    assert {name: composed[name] for name in PAPER} == {name: value for name, (value, _) in PAPER.items()}
    assert composed["tasks.files"] == ["tasks/gsm8k.yaml", "tasks/commonsense_qa.yaml"]
    assert set(preset.options(["scale=paper"])) <= set(PAPER)  # nothing is set that is not compared


@pytest.mark.skipif(not METHOD.is_file(), reason=f"the method's description is not at {METHOD}")
def test_the_papers_settings_are_those_of_the_method():
    method = METHOD.read_text()
    assert [name for name, (_, words) in PAPER.items() if words not in method] == []


def test_the_default_presets_are_what_params_yaml_says():
    shipped = OmegaConf.load(params.PARAMS_FILE)
    for parameter, value in preset.options(["model=tiny", "scale=default", "data=microworld"]).items():
        assert OmegaConf.select(shipped, parameter) == value, parameter


def test_the_default_presets_set_back_what_a_small_run_set():
    """All but the rows of data sets from the hub, which each preset of such data sets."""
    small = {name for scale in ("smoke", "quick") for name in preset.options([f"scale={scale}"])}
    back = set(preset.options(["model=tiny", "scale=default", "data=microworld"]))
    assert small - back == {f"corpus.hub.{split}.rows" for split in ("pretrain", "train", "heldout")}


@pytest.mark.parametrize("name", [name for name in GROUPS[1] if name not in ("data=microworld", "data=textbooks")])
def test_data_from_the_hub_says_all_of_its_splits_after_other_data(name: str):
    """Textbooks have a part of their rows, which other data has no column for."""
    after = preset.options(["data=textbooks"]) | {
        "corpus.hub.train.columns": "a+b",
        "corpus.hub.train.solution": "final",
    }
    every = params.load(params.PARAMS_FILE, after | preset.options([name]))
    for rows in vars(every.corpus.hub).values():
        assert (rows.part, rows.solution) == (None, None)


def test_a_plan_of_the_quick_run_counts_its_questions():
    quick = params.load(params.PARAMS_FILE, preset.options(["scale=quick"]))
    assert quick.plan.questions == quick.corpus.microworld.questions * len(quick.tasks.files)


def test_hardware_does_not_change_the_papers_batch():
    for name in ("hardware=gpu", "hardware=node"):
        values = preset.options(["scale=paper", name])
        assert values["train.batch_size"] * values["train.accumulation"] == PAPER["train.batch_size"][0]
        assert values["train.accumulation"] % values["plan.devices"] == 0


@pytest.mark.parametrize(
    "arguments, named",
    [
        (["data=nothing"], "there is no preset data=nothing"),
        (["scale=smoke", "train.nothing=3"], "train.nothing"),
        (["scale=smoke", "train.steps=many"], "train.steps"),
        (["scale=smoke", "train.steps"], "train.steps"),
        # the shell splits what is printed at spaces, and a comma is a list of values to `dvc exp run`
        (["scale=smoke", "train.meta_token_text=a b"], "train.meta_token_text"),
        (["scale=smoke", "corpus.hub.train.path=a,b"], "corpus.hub.train.path"),
        (["scale=smoke", "train.meta_token_text="], "train.meta_token_text"),
    ],
)
def test_what_does_not_exist_or_would_not_reach_dvc_whole_is_refused(arguments: list[str], named: str):
    with pytest.raises(UserError, match=named) as error:
        preset.options(arguments)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("group", [*GROUPS[1], "model=tiny"])
def test_the_tasks_are_there_and_root_puts_every_data_set_under_a_folder(group: str):
    with pytest.raises(UserError, match="corpus.hub"):
        preset.options([group], root="/my data")
    values = preset.options([group], root="/data/hub")
    plain = preset.options([group])
    shipped = OmegaConf.load(params.PARAMS_FILE)
    tasks = plain.get("tasks.files", shipped.tasks.files)
    assert len(tasks) == 2 and all((ROOT / file).is_file() for file in tasks)
    assert values["tasks.root"] == "/data/hub" and "tasks.root" not in plain
    for split in ("pretrain", "train", "heldout"):
        name = f"corpus.hub.{split}.path"
        assert values[name] == f"/data/hub/{plain.get(name, shipped.corpus.hub[split].path)}"


def test_as_a_command(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    assert "tasks.root=/data" in printed(["scale=smoke", "root=/data"], capsys, monkeypatch)
    with pytest.raises(UserError, match="root= is empty"):
        printed(["data=gsm8k", "root="], capsys, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["preset", "root=/a", "root=/b"])
    with pytest.raises(UserError, match="root= is given 2 times"):
        main()
    monkeypatch.setattr(sys, "argv", ["preset"])
    main()
    assert "data=gsm8k" in capsys.readouterr().out and len(WHOLE) >= 200
