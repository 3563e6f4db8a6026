"""What a user can get wrong ends a stage with one line, leaves no half of an output, and keeps what was there."""

import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import pytest
import torch

from pipeline import errors
from tests import local_hub
from tests.stage_runner import run_as_module, run_stage, run_stages, set_params

HAS_GPU = torch.cuda.is_available()


@pytest.fixture
def project(finished: Path, tmp_path: Path) -> Path:
    """A copy of a finished run, to break."""
    return shutil.copytree(finished, tmp_path / "project")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def refused(project: Path, stage: str, named: str, runner: Callable = run_stage, resumed: bool = False) -> str:
    """Run a stage that must refuse: one line that names the culprit, and no file written, changed or removed.

    One that is ``resumed`` may keep what it had done, in `.resume`.
    """
    before = contents(project)
    done = runner(project, stage)
    assert "Traceback" not in done.stderr, done.stderr
    assert done.code == 1
    assert len(done.complaint) == 1 and done.complaint[0].startswith("error: "), done.stderr
    assert named in done.complaint[0]
    left_out = ("__pycache__", ".resume/") if resumed else ("__pycache__",)
    kept = [
        {name: content for name, content in some.items() if not any(word in name for word in left_out)}
        for some in (before, contents(project))
    ]
    assert kept[0] == kept[1]
    return done.complaint[0]


@pytest.mark.parametrize("stage", ["corpus", "train", "report"])
def test_bad_params(stage: str, project: Path):
    set_params(project, {"train.lookahead": 1000})
    refused(project, stage, "train.lookahead")


def test_bad_params_by_python_m(project: Path):
    set_params(project, {"train.steps": "ten"})
    refused(project, "corpus", "train.steps", runner=run_as_module)


def test_outside_a_project(project: Path):
    (project / "params.yaml").unlink()
    refused(project, "corpus", "params.yaml is missing")


MISSING = {
    "tokenize": ["data/corpus", "data/corpus/texts/heldout.arrow"],
    "base_model": [
        "data/tokens",
        "data/tokens/tokenizer",
        "data/tokens/pretrain.arrow",
        "data/tokens/heldout.arrow",
    ],
    "train": [
        "models/base",
        "data/tokens/train.arrow",
        "data/tokens/heldout.arrow",
        "data/corpus/texts/probe.parquet",
    ],
    "tasks": ["data/corpus/tasks/rings", "tasks/microworld/micro_rings.yaml"],
    "baseline pause 1": ["models/base", "data/tokens/train.arrow"],
    "evaluate": [
        "models/quiet_star",
        "models/base",
        "data/tasks",
        "data/tasks/micro_rings.parquet",
        "models/quiet_star/config.json",
    ],
    "evaluate_baseline pause 1": ["models/baseline/pause-1", "data/tasks"],
    "compare": ["results/evaluate/predictions.parquet", "results/evaluate/pause-1/predictions.parquet"],
    "chain_of_thought": ["models/quiet_star", "data/tasks"],
    "perplexity": ["models/quiet_star", "data/tokens/heldout.arrow"],
}
INSIDE_A_MODEL = ("model.safetensors", "config.json", "tokenizer.json")
BROKEN = {
    "tokenize": ["data/corpus/texts/pretrain.arrow", "data/corpus/texts/train.arrow"],
    "base_model": ["data/tokens/tokenizer/tokenizer.json", "data/tokens/pretrain.arrow"],
    "train": ["data/tokens/train.arrow", *(f"models/base/{name}" for name in INSIDE_A_MODEL)],
    "tasks": ["tasks/microworld/micro_rings.yaml", "data/corpus/tasks/rings/test.parquet"],
    "compare": ["results/evaluate/predictions.parquet"],
    "chain_of_thought": ["data/tasks/micro_rings.yaml", "models/quiet_star/model.safetensors"],
    "evaluate": [
        "data/tasks/micro_rings.parquet",
        "data/tasks/micro_rings.yaml",
        *(f"models/quiet_star/{name}" for name in INSIDE_A_MODEL),
    ],
    "perplexity": ["data/tokens/heldout.arrow", *(f"models/quiet_star/{name}" for name in INSIDE_A_MODEL)],
}


@pytest.mark.parametrize("stage, gone", [(stage, gone) for stage, paths in MISSING.items() for gone in paths])
def test_a_missing_input(stage: str, gone: str, project: Path):
    path = project / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    refused(project, stage, str(Path(gone).parent))


@pytest.mark.parametrize("stage, broken", [(stage, broken) for stage, paths in BROKEN.items() for broken in paths])
def test_a_broken_input(stage: str, broken: str, project: Path):
    """As a killed copy leaves it."""
    path = project / broken
    path.write_bytes(path.read_bytes()[:40])
    refused(project, stage, str(Path(broken).parent))


def test_the_report_without_results(project: Path):
    shutil.rmtree(project / "results/compare")
    refused(project, "report", "results/compare")


def hub_project(project: Path, **changes: object) -> Path:
    """The project, set to take its data from small local folders, with ``changes`` (``__`` is a dot) on top."""
    set_params(project, local_hub.sources(project / "hub") | {k.replace("__", "."): v for k, v in changes.items()})
    return project


def test_a_missing_folder(project: Path):
    hub_project(project, corpus__hub__train__path=str(project / "nowhere"))
    refused(project, "corpus", "nowhere")


def test_a_missing_split(project: Path):
    hub_project(project, corpus__hub__train__split="extra")
    refused(project, "corpus", "extra")


def test_a_missing_configuration(project: Path):
    hub_project(project, corpus__hub__train__name="socratic")
    refused(project, "corpus", "socratic")


@pytest.mark.parametrize("columns", ["body", "question+reply"])
def test_a_wrong_column_is_named_with_those_there_are(columns: str, project: Path):
    hub_project(project, corpus__hub__train__columns=columns)
    message = refused(project, "corpus", columns.split("+")[-1])
    assert "question, answer" in message


def replaced(project: Path, split: str, folder: Path, part: str, **changes: object) -> Path:
    names = {f"corpus__hub__{split}__path": str(folder), f"corpus__hub__{split}__split": part}
    return hub_project(project, **names, **{f"corpus__hub__{split}__{k}": v for k, v in changes.items()})


def test_a_column_that_is_not_text(project: Path):
    folder = local_hub.parquet(project / "numbers", "train", [{"text": 1}, {"text": 2}])
    refused(replaced(project, "train", folder, "train", columns="text"), "corpus", "is not text")


def test_an_empty_split(project: Path):
    folder = local_hub.jsonl(project / "blank", "train", [{"text": " "}, {"text": "\n"}])
    refused(replaced(project, "train", folder, "train", columns="text"), "corpus", "has no text", resumed=True)
    pd.DataFrame({"text": pd.Series([], dtype=str)}).to_parquet(folder / "train.parquet")
    (folder / "train.jsonl").unlink()
    refused(project, "corpus", "blank", resumed=True)


def test_a_folder_without_data(project: Path):
    (project / "hollow").mkdir()
    refused(replaced(project, "heldout", project / "hollow", "train"), "corpus", "hollow")


def test_a_text_file_that_is_not_utf_8(project: Path):
    folder = local_hub.text_lines(project / "latin", "train", ["good"])
    (folder / "train.txt").write_bytes("caf\u00e9 cr\u00e8me\n".encode("latin-1") * 5)
    refused(replaced(project, "train", folder, "train", columns="text"), "corpus", "latin")


def test_a_broken_parquet_file(project: Path):
    folder = local_hub.parquet(project / "torn", "train", local_hub.gsm8k_rows(50))
    file = next(folder.rglob("*.parquet"))
    file.write_bytes(file.read_bytes()[:-20])
    refused(replaced(project, "train", folder, "train"), "corpus", "torn")


def test_broken_json(project: Path):
    folder = project / "json"
    folder.mkdir()
    (folder / "train.jsonl").write_text('{"text": "fine"}\n{"text": \n')
    refused(replaced(project, "train", folder, "train", columns="text"), "corpus", "json")


@pytest.mark.parametrize("answer", ["No mark 12", "#### twelve", "#### ", 3])
def test_answers_without_a_number(answer: object, project: Path):
    rows = [{"question": "q", "answer": answer}]
    pd.DataFrame(rows).to_parquet(project / "data/corpus/tasks/rings/test.parquet")
    refused(project, "tasks", "question 0")


def test_an_answer_that_is_not_among_the_labels(project: Path):
    rows = [row | {"answerKey": "F"} for row in local_hub.commonsense_qa_rows(2)]
    pd.DataFrame(rows).to_parquet(project / "data/corpus/tasks/animals/test.parquet")
    refused(project, "tasks", "not among A, B, C, D, E")


def test_a_task_file_in_another_place(project: Path):
    shutil.copy(project / "tasks/microworld/micro_rings.yaml", project / "mine.yaml")
    set_params(project, {"tasks.files": ["mine.yaml"]})
    refused(project, "tasks", "mine.yaml is not in the folder tasks")


def test_no_questions(project: Path):
    path = project / "data/tasks/micro_rings.parquet"
    pd.read_parquet(path).head(0).to_parquet(path)
    refused(project, "evaluate", "no questions")


def test_questions_of_another_shape(project: Path):
    pd.DataFrame({"body": ["What?"]}).to_parquet(project / "data/tasks/micro_rings.parquet")
    refused(project, "evaluate", "data/tasks/micro_rings.parquet does not hold questions")


@pytest.mark.parametrize("parameter", ["tokenize.pretrain_span", "tokenize.span"])
def test_spans_longer_than_the_text(parameter: str, project: Path):
    set_params(project, {parameter: 4000 if parameter == "tokenize.span" else 10**7, "tokenize.packed": True})
    refused(project, "tokenize", parameter)


def test_a_vocabulary_too_small_for_the_choices(project: Path):
    set_params(project, {"tokenize.vocabulary": 270})
    run_stages(project, ("tokenize", "base_model", "train"))
    done = run_stage(project, "evaluate")
    assert done.code == 0 or (len(done.complaint) == 1 and "tokenize.vocabulary" in done.complaint[0])


def model_project(project: Path, model: str | Path, **changes: object) -> Path:
    changes = {k.replace("__", "."): v for k, v in changes.items()}
    set_params(project, {"base_model.source": "hub", "base_model.path": str(model)} | changes)
    return project


@pytest.mark.parametrize("stage", ["tokenize", "base_model"])
def test_an_unknown_model(stage: str, project: Path):
    refused(model_project(project, project / "models/unknown"), stage, "models/unknown")


def test_a_model_with_pickled_weights_only(project: Path):
    """A pickle can run any code when it is loaded."""
    model = local_hub.model_folder(project / "pickled", safe=False)
    refused(model_project(project, model), "base_model", "pickled")


@pytest.mark.parametrize("architecture", ["mamba", "bloom"])
def test_a_model_that_cannot_think(architecture: str, project: Path):
    model = local_hub.model_folder(project / "other", architecture)
    run_stages(model_project(project, model), ("tokenize",))
    refused(project, "base_model", f"cannot think: {architecture}")


def test_a_model_with_fewer_embeddings_than_tokens(project: Path):
    model = local_hub.model_folder(project / "small")
    refused(model_project(project, model), "base_model", "embeddings")  # the tokenizer is still the larger one


def test_a_model_without_a_tokenizer(project: Path):
    model = local_hub.model_folder(project / "mute")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (model / name).unlink()
    refused(model_project(project, model), "tokenize", "mute")


def test_positions_that_the_model_does_not_have(project: Path):
    model = local_hub.model_folder(project / "short", n_positions=48)
    run_stages(model_project(project, model, tokenize__span=48), ("tokenize", "base_model"))
    assert "a span" in refused(project, "train", "48")
    set_params(project, {"tokenize.span": 16})
    run_stages(project, ("tokenize",))
    assert "a probe's prompt" in refused(project, "train", "48")
    probe = project / "data/corpus/texts/probe.parquet"
    pd.read_parquet(probe).head(0).to_parquet(probe)
    run_stages(project, ("train",))
    refused(project, "evaluate", "positions, but the base model has 48")


def test_another_model_where_the_trained_one_should_be(project: Path):
    shutil.rmtree(project / "models/quiet_star")
    shutil.copytree(project / "models/base", project / "models/quiet_star")
    for stage in ("evaluate", "chain_of_thought", "perplexity"):
        refused(project, stage, "holds a llama model")


def test_weights_of_another_size(project: Path):
    config = project / "models/quiet_star/config.json"
    config.write_text(config.read_text().replace('"intermediate_size": 24', '"intermediate_size": 32'))
    refused(project, "evaluate", "models/quiet_star")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU, so attention flex is right")
def test_attention_for_a_gpu_without_one(project: Path):
    set_params(project, {"train.attention": "flex"})
    refused(project, "train", "train.attention is flex, which needs a CUDA GPU to train on: set it to auto")


@pytest.mark.skipif(HAS_GPU, reason="there is a GPU, so device cuda is right")
@pytest.mark.parametrize("stage", ["train", "evaluate", "chain_of_thought", "perplexity"])
def test_a_gpu_where_there_is_none(stage: str, project: Path):
    set_params(project, {f"{stage}.device": "cuda"})
    refused(project, stage, "cuda")


def test_adapters_on_layers_that_there_are_not(project: Path):
    set_params(project, {"train.adapt": "lora", "train.lora.modules": ["q_proj", "query"]})
    refused(project, "train", "train.lora.modules: no linear layer of the decoder is called query: there are down_proj")


@pytest.mark.parametrize("stage", ["evaluate", "chain_of_thought", "perplexity", "release"])
def test_what_was_learned_without_its_base_model(stage: str, project: Path):
    set_params(project, {"train.adapt": "frozen", "train.saved": "learned", "baseline.methods": ["pause"]})
    run_stages(project, ("train",))
    shutil.rmtree(project / "models/base")
    refused(
        project, stage, "models/quiet_star holds only what was trained: the model that it was trained on must be in"
    )


@pytest.mark.parametrize("rate", [1e30, 1e4])
def test_a_learning_rate_at_which_the_weights_blow_up(rate: float, project: Path):
    set_params(project, {"train.learning_rate": rate, "train.steps": 6, "train.policy_weight": 1e30})
    refused(project, "train", "learning rate")


def test_a_meta_token_without_a_token(project: Path):
    model = local_hub.model_folder(project / "gpt2")
    run_stages(model_project(project, model), ("tokenize", "base_model"))
    set_params(project, {"train.meta_token_text": ""})
    refused(project, "train", "train.meta_token_text")


def full_disk(folder: Path, size: str) -> Iterator[None]:
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no small file system could be mounted: {mounted.stderr.decode().strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


FULL = [
    ("corpus", "data", {"corpus.microworld.pretrain_documents": 30_000}),
    ("tokenize", "data", {}),
    ("base_model", "models", {"base_model.scratch.hidden_size": 256}),
    ("train", "models", {}),
    ("tasks", "data", {}),
    ("evaluate", "results", {}),
    ("chain_of_thought", "results", {}),
    ("perplexity", "results", {}),
]


@pytest.mark.parametrize("stage, where, changes", FULL, ids=[stage for stage, _, _ in FULL])
def test_a_full_disk(stage: str, where: str, changes: dict[str, object], project: Path, request: pytest.FixtureRequest):
    """The outputs' folder is a file system with no room for more than its inputs."""
    set_params(project, changes)
    kept = project / "kept"
    (project / where).rename(kept)
    (project / where).mkdir()
    mount = full_disk(project / where, "1m")
    next(mount)
    request.addfinalizer(lambda: next(mount, None))
    shutil.copytree(kept, project / where, dirs_exist_ok=True)
    filler = project / where / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 4096)
    refused(project, stage, "No space left on device", resumed=stage == "chain_of_thought")


@pytest.mark.skipif(shutil.which("chattr") is None, reason="no chattr")
def test_a_folder_that_cannot_be_written(project: Path, request: pytest.FixtureRequest):
    """Immutable rather than read-only, as root may write to what is read-only."""
    done = subprocess.run(["chattr", "+i", project / "results/evaluate"], capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"chattr: {done.stderr.decode().strip()}")
    request.addfinalizer(lambda: subprocess.run(["chattr", "-i", project / "results/evaluate"], check=True))
    refused(project, "evaluate", "ermi")


def test_only_a_users_mistake_hides_the_traceback():
    def broken() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        errors.run(broken)


def test_a_message_is_one_line(capsys: pytest.CaptureFixture):
    def refuse() -> None:
        raise errors.UserError("first\n  second")

    with pytest.raises(SystemExit) as end:
        errors.run(refuse)
    assert end.value.code == "error: first second"


def test_a_complaint_of_the_system_names_the_file(tmp_path: Path):
    with pytest.raises(SystemExit) as end:
        errors.run(lambda: (tmp_path / "nothing").read_text())
    assert end.value.code == f"error: No such file or directory: {tmp_path / 'nothing'}"
