"""The table of bad inputs. `test_cases` runs every row; docs/errors.md shows them (`python -m tests.bad_input`)."""

import shutil
from functools import partial
from itertools import starmap
from pathlib import Path

from pipeline.training.processes import LAUNCHED
from tests.bad_input import spoil
from tests.bad_input.case import Case
from tests.bad_input.spoil import (
    each,
    file,
    folder,
    gone,
    holds,
    hub,
    link,
    model,
    no_gpu,
    params,
    replaced,
    task,
    torn,
)
from tests.local_hub import commonsense_qa_rows

RINGS = "tasks/microworld/micro_rings.yaml"
CPUS = b"distributed_type: MULTI_GPU\nuse_cpu: true\nnum_processes: 2\n"
PARAMETERS = [
    Case("no such file", "corpus", "params.yaml is missing: run from the project's root", gone("params.yaml")),
    Case("a folder", "corpus", "params.yaml is not readable: Is a directory", folder("params.yaml")),
    Case("a link to nowhere", "corpus", "params.yaml is missing: run from the project's root", link("params.yaml")),
    Case("an empty file", "corpus", "params.yaml: the file is empty", holds("params.yaml", b"")),
    Case(
        "no keys",
        "corpus",
        "params.yaml: the whole file is ['train'], but must be a section",
        holds("params.yaml", b"- train\n"),
    ),
    Case(
        "not UTF-8",
        "corpus",
        "params.yaml is not readable YAML: …",
        holds("params.yaml", "train: café".encode("latin-1")),
    ),
    Case("YAML that ends early", "corpus", "params.yaml is not readable YAML: …", holds("params.yaml", b"train: [1,")),
    Case(
        "a tab as indentation",
        "corpus",
        "params.yaml is not readable YAML: …",
        holds("params.yaml", b"train:\n\tsteps: 3\n"),
    ),
    Case(
        "a key twice",
        "corpus",
        "params.yaml is not readable YAML: line …, column 1: the key report is there twice",
        replaced("params.yaml", "\ntrain:", "\nreport: {passages: 1}\ntrain:"),
    ),
    Case(
        "a tag",
        "corpus",
        "params.yaml is not readable YAML: line 1, column 8: it has the tag "
        "!!python/object/apply:os.system, but values have no tags here",
        holds("params.yaml", b"train: !!python/object/apply:os.system ['touch CODE_WAS_RUN']\n"),
    ),
    Case(
        "an alias",
        "corpus",
        "params.yaml is not readable YAML: line 1, column 4: it is used again by an alias (*): write it out",
        holds("params.yaml", b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n"),
    ),
    Case(
        "a thousand brackets",
        "corpus",
        "params.yaml is not readable YAML: line 1, column 28: it is nested more than 20 deep",
        holds("params.yaml", b"train: " + b"[" * 900 + b"]" * 900),
    ),
    Case(
        "a section that is a word", "corpus", "params.yaml: train is fast, but must be a section", params(train="fast")
    ),
    Case(
        "a section left empty",
        "corpus",
        "params.yaml: corpus.hub.train is None, but must be a section",
        params(corpus__hub__train=None),
    ),
    Case(
        "a section missing",
        "corpus",
        "params.yaml: there is no key reports",
        replaced("params.yaml", "report:", "reports:"),
    ),
    Case("an unknown key", "corpus", "params.yaml: there is no key train.stepz", params(train__stepz=3)),
    Case(
        "a key missing",
        "train",
        "params.yaml: train.lookahead is missing",
        replaced("params.yaml", "  lookahead:", "  # lookahead:"),
    ),
    Case(
        "a word for a number",
        "corpus",
        "params.yaml: train.steps: Value 'ten' of type 'str' could not be converted to Integer",
        params(train__steps="ten"),
    ),
    Case(
        "a fraction for a whole number",
        "corpus",
        "params.yaml: train.steps: Value '1.5' of type 'float' could not be converted to Integer",
        params(train__steps=1.5),
    ),
    Case(
        "yes for a number",
        "corpus",
        "params.yaml: train.steps: Value 'True' of type 'bool' could not be converted to Integer",
        params(train__steps=True),
    ),
    Case(
        "nothing for a number",
        "corpus",
        "params.yaml: train.steps: Incompatible value 'None' for field of type 'int'",
        params(train__steps=None),
    ),
    Case(
        "a list for a number",
        "corpus",
        "params.yaml: train.steps: Value '[1, 2]' of type 'ListConfig' could not be converted to Integer",
        params(train__steps=[1, 2]),
    ),
    Case(
        "keys for a number",
        "corpus",
        "params.yaml: train.steps: Value '{'a': 1}' of type 'DictConfig' could not be converted to Integer",
        params(train__steps={"a": 1}),
    ),
    Case(
        "a number of 31 digits",
        "train",
        "params.yaml: train.steps is 1000000000000000000000000000000, but must be at most 9223372036854775807",
        params(train__steps=10**30),
    ),
    Case(
        "zero steps",
        "corpus",
        "params.yaml: train.steps is 0, but must be at least 1 and at most 1000000",
        params(train__steps=0),
    ),
    Case(
        "more texts than can be counted",
        "train",
        "params.yaml: train.batch_size is 10000000000, but must be at least 1 and at most 1000000",
        params(train__batch_size=10**10),
    ),
    Case(
        "a vocabulary of 63 bits",
        "tokenize",
        "params.yaml: tokenize.vocabulary is 9223372036854775807, but must be at least 258 and at most 1000000",
        params(tokenize__vocabulary=2**63 - 1),
    ),
    Case(
        "weights that start too large",
        "base_model",
        "params.yaml: base_model.scratch.init_std is 1.5, but must be above 0 and at most 1",
        params(base_model__scratch__init_std=1.5),
    ),
    Case(
        "a negative seed",
        "corpus",
        "params.yaml: corpus.seed is -1, but must be at least 0 and at most 4294967295",
        params(corpus__seed=-1),
    ),
    Case(
        "a seed of 33 bits",
        "corpus",
        "params.yaml: train.seed is 4294967296, but must be at least 0 and at most 4294967295",
        params(train__seed=2**32),
    ),
    Case(
        "no number (NaN)",
        "corpus",
        "params.yaml: train.learning_rate is nan, but must be a finite number above 0",
        params(train__learning_rate=float("nan")),
    ),
    Case(
        "an infinite number",
        "train",
        "params.yaml: train.policy_weight is inf, but must be a finite number at least 0",
        params(train__policy_weight=float("inf")),
    ),
    Case(
        "a negative rate",
        "train",
        "params.yaml: train.learning_rate is -0.1, but must be above 0",
        params(train__learning_rate=-0.1),
    ),
    Case(
        "a share above one",
        "corpus",
        "params.yaml: corpus.microworld.aside_share is 1.5, but must be at least 0 and at most 1",
        params(corpus__microworld__aside_share=1.5),
    ),
    Case(
        "a word that is none of the choices",
        "corpus",
        "params.yaml: corpus.source is internet, but must be one of microworld, hub",
        params(corpus__source="internet"),
    ),
    Case(
        "a word for yes or no",
        "tokenize",
        "params.yaml: tokenize.packed: Value 'perhaps' is not a valid bool (type str)",
        params(tokenize__packed="perhaps"),
    ),
    Case(
        "a word for a list",
        "tasks",
        "params.yaml: tasks.files is tasks/microworld/micro_rings.yaml, but must be a list of single values",
        params(tasks__files=RINGS),
    ),
    Case(
        "keys for a list",
        "train",
        "params.yaml: train.lora.modules is {'q_proj': 1}, but must be a list of single values",
        params(train__lora__modules={"q_proj": 1}),
    ),
    Case(
        "a list in a list",
        "compare",
        "params.yaml: baseline.methods is [['pause']], but must be a list of single values",
        params(baseline__methods=[["pause"]]),
    ),
    Case(
        "an empty list of tasks",
        "tasks",
        "params.yaml: tasks.files is empty: name at least one task file",
        params(tasks__files=[]),
    ),
    Case(
        "a method twice",
        "compare",
        "params.yaml: baseline.methods is ['pause', 'pause'], but must name nothing twice",
        params(baseline__methods=["pause", "pause"]),
    ),
    Case(
        "an unknown method",
        "compare",
        "params.yaml: baseline.methods has magic, but a method is one of quiet_star, pause, no_thought",
        params(baseline__methods=["magic"]),
    ),
    Case(
        "a word for a seed",
        "compare",
        "params.yaml: baseline.seeds[0]: Value 'one' of type 'str' could not be converted to Integer",
        params(baseline__seeds=["one"]),
    ),
    Case(
        "another parameter's value",
        "corpus",
        "params.yaml: report.passages: While dereferencing interpolation '\\${train.steps}': Value"
        " '${train.steps}' of type 'str' could not be converted to Integer",
        replaced("params.yaml", "passages: ", "passages: ${train.steps} #"),
    ),
    Case(
        "a lookahead longer than a text",
        "report",
        "params.yaml: train.lookahead is 1000, but in a span of 24 tokens (tokenize.span) a "
        "thought has at most 22 tokens after it",
        params(train__lookahead=1000),
    ),
    Case(
        "a text longer than the model",
        "train",
        "params.yaml: tokenize.span (4096), train.thought_tokens (2) and train.lookahead (2) "
        "leave no room for a thought: a model from scratch has 4096 positions",
        params(tokenize__span=4096),
    ),
    Case(
        "heads that do not divide",
        "base_model",
        "params.yaml: base_model.scratch: heads (3) must divide hidden_size (16), and "
        "key_value_heads (1) must divide heads",
        params(base_model__scratch__heads=3),
    ),
    Case(
        "a head of odd size",
        "base_model",
        "params.yaml: base_model.scratch: hidden_size (12) over heads (4) must be even, for rotary position embeddings",
        params(base_model__scratch__hidden_size=12, base_model__scratch__heads=4),
    ),
    Case(
        "a hub model without a name",
        "tokenize",
        "params.yaml: base_model.path is missing: with base_model.source hub it names a hub model or a local folder",
        params(base_model__source="hub"),
    ),
    Case(
        "three columns",
        "corpus",
        "params.yaml: corpus.hub.train.columns is a+b+c, but must name one column, or two with a + between",
        params(corpus__hub__train__columns="a+b+c"),
    ),
    Case(
        "no text for the meta-tokens",
        "train",
        "params.yaml: train.meta_token_text is empty: the meta-tokens start as the embedding of this text",
        params(train__meta_token_text=""),
    ),
    Case(
        "spans longer than the text",
        "tokenize",
        "the pretrain text is too short for one span: more documents, or a smaller tokenize.pretrain_span",
        params(tokenize__pretrain_span=10**6),
    ),
    Case(
        "packed spans longer than the text",
        "tokenize",
        "the train text is too short for one span: more documents, or a smaller tokenize.span",
        params(tokenize__span=4000, tokenize__packed=True),
    ),
    Case(
        "a rate at which the weights blow up",
        "train",
        "the held-out loss is … after step …: lower the learning rate or the meta-token scale, or check the base model",
        params(train__learning_rate=1e30, train__steps=6),
    ),
    Case(
        "a policy at which the weights blow up",
        "train",
        "step …: the loss or the gradient (norm …) is not finite, with texts …; the last good checkpoint is none yet: "
        "lower the learning rate, the policy weight or the meta-token scale, or check the base model",
        params(train__learning_rate=1e4, train__steps=6, train__policy_weight=1e30),
    ),
    Case(
        "a rate at which a step is no number",
        "train",
        "step …: the loss or the gradient (norm …) is not finite, with texts …; the last good checkpoint is none yet: "
        "lower the learning rate, the policy weight or the meta-token scale, or check the base model",
        params(train__learning_rate=1e30, train__steps=6, train__evaluation_steps=6, train__warmup_steps=0),
    ),
    Case(
        "adapters on layers that there are not",
        "train",
        "train.lora.modules: no linear layer of the decoder is called query: there are down_proj, …",
        params(train__adapt="lora", train__lora__modules=["q_proj", "query"]),
    ),
    Case(
        "a launcher that there is not",
        "train",
        "train.launcher is many, but must be single or a file such as launchers/node.yaml",
        params(train__launcher="many"),
    ),
    Case(
        "a launcher that is no configuration",
        "train",
        "tasks/gsm8k.yaml is no configuration for `accelerate launch`: it names no distributed_type",
        params(train__launcher="tasks/gsm8k.yaml"),
    ),
    Case(
        "a launcher that is no YAML",
        "train",
        "mine.yaml is not readable YAML: …",
        each(holds("mine.yaml", b"distributed_type: [\n"), params(train__launcher="mine.yaml")),
    ),
    *(
        Case(
            f"a launcher {wrong}",
            "train",
            message,
            each(holds("mine.yaml", content), params(train__launcher="mine.yaml")),
            environment=environment,
        )
        for wrong, content, environment, message in (
            (
                "for one process",
                b"distributed_type: 'NO'\n",
                {},
                "mine.yaml has distributed_type NO, but must have MULTI_GPU or FSDP: for one process set "
                "train.launcher to single",
            ),
            (
                "with a setting that accelerate does not know",
                CPUS + b"processes: 2\n",
                {},
                "mine.yaml cannot be launched: …",
            ),
            (
                "without the first machine's address",
                CPUS + b"num_machines: 2\n",
                {},
                "mine.yaml is for 2 machines: set MASTER_ADDR to the first one's address on each",
            ),
            (
                "with a number of machines that is none",
                CPUS,
                {"NNODES": "two"},
                "the environment variable NNODES is 'two', but must be a number",
            ),
            (
                "for no machine",
                CPUS,
                {"NNODES": "0"},
                "mine.yaml is for 0 machines (num_machines, NNODES), but must be for at least 1",
            ),
            (
                "whose number of machines is a word",
                CPUS + b"num_machines: two\n",
                {},
                "mine.yaml is for two machines (num_machines, NNODES), but must be for at least 1",
            ),
            ("with a port that there is not", CPUS, {"MASTER_PORT": "99999"}, "mine.yaml cannot be launched: …"),
            ("with GPUs that are no list", CPUS + b"gpu_ids: 0\n", {}, "mine.yaml cannot be launched: …"),
            ("nested too deep", b"[" * 20_000, {}, "mine.yaml is not readable YAML: …"),
        )
    ),
    Case(
        "a launcher whose processes cannot reach each other",
        "train",
        "the processes lost each other (…nowhere…): `dvc repro` goes on from the last checkpoint",
        params(train__launcher="launchers/cpus.yaml", train__accumulation=2),
        environment={"GLOO_SOCKET_IFNAME": "nowhere"},
    ),
    Case(
        "a launcher for GPUs without one",
        "train",
        "launchers/node.yaml runs a process a GPU, but no CUDA GPU is usable here: set train.launcher to single",
        each(no_gpu, params(train__launcher="launchers/node.yaml")),
    ),
    Case(
        "passes that processes cannot share out",
        "train",
        "train.accumulation is 1, but 2 processes share an optimizer step's passes: make it a multiple of 2 (and "
        "train.batch_size smaller, for as many texts a step)",
        params(train__launcher="launchers/cpus.yaml", train__accumulation=1),
    ),
    Case(
        "flex attention without a GPU",
        "train",
        "train.attention is flex, which needs a CUDA GPU to train on: set it to auto",
        each(no_gpu, params(train__attention="flex")),
    ),
    *(
        Case(
            "device cuda without a GPU",
            stage,
            "device is cuda, but no CUDA GPU is usable here: set it to auto or cpu",
            each(no_gpu, params(**{f"{stage}__device": "cuda"})),
        )
        for stage in ("train", "evaluate", "chain_of_thought", "perplexity")
    ),
]


def half_of_the_files_gone(project: Path) -> None:
    file = project / "hub/openai/gsm8k/main/train-00000-of-00001.parquet"
    file.rename(file.with_name("train-00000-of-00002.parquet"))
    file.with_name("train-00001-of-00002.parquet").symlink_to("../../blobs/0123")


CORPORA = [
    Case(
        "no such folder",
        "corpus",
        "the folder PROJECT/nowhere does not exist: name a hub data set or a folder in the hub's layout",
        hub(corpus__hub__train__path="PROJECT/nowhere"),
    ),
    Case(
        "a file that is a link to nowhere, as a cleared cache leaves it",
        "corpus",
        "PROJECT/hub/openai/gsm8k/main/train-00001-of-00002.parquet is a link to a file that does not exist: download "
        "the data set again",
        each(hub(), half_of_the_files_gone),
    ),
    Case(
        "no such split",
        "corpus",
        "data set PROJECT/hub/openai/gsm8k, split extra cannot be read: …",
        hub(corpus__hub__train__split="extra"),
    ),
    Case(
        "no such configuration",
        "corpus",
        "data set PROJECT/hub/openai/gsm8k, socratic, split train cannot be read: …",
        hub(corpus__hub__train__name="socratic"),
    ),
    Case(
        "no such column",
        "corpus",
        "data set PROJECT/hub/openai/gsm8k, split train has no column 'body'; its columns are question, answer",
        hub(corpus__hub__train__columns="body"),
    ),
    Case(
        "no such second column",
        "corpus",
        "data set PROJECT/hub/openai/gsm8k, split train has no column 'reply'; its columns are question, answer",
        hub(corpus__hub__train__columns="question+reply"),
    ),
    Case(
        "a file for a folder",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        each(holds("own", b"text\n"), hub(corpus__hub__train__path="PROJECT/own")),
    ),
    Case(
        "no text for the path",
        "corpus",
        "params.yaml: corpus.hub.train.path is empty: name a hub data set or a local folder",
        hub(corpus__hub__train__path=""),
    ),
    Case(
        "a hub name without a network",
        "corpus",
        "data set nobody/nothing, split train cannot be read: …",
        hub(corpus__hub__train__path="nobody/nothing"),
    ),
    Case(
        "numbers for texts",
        "corpus",
        "data set PROJECT/own, split train: column text is not text",
        each(spoil.train_rows({"text": 1}), params(corpus__hub__train__columns="text")),
    ),
    Case(
        "a row without a text",
        "corpus",
        "data set PROJECT/own, split train: column text is not text",
        each(spoil.train_rows({"text": "fine"}, {"text": None}), params(corpus__hub__train__columns="text")),
    ),
    Case(
        "blank texts only",
        "corpus",
        "data set PROJECT/own, split train has no text",
        spoil.train_split("own/train.txt", b" \n \n"),
    ),
    Case(
        "no rows",
        "corpus",
        "data set PROJECT/own, split train has a Parquet file without rows: leave it out",
        each(spoil.train_rows({"text": ""}), spoil.no_rows("own/train.parquet")),
    ),
    Case(
        "an empty folder",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        each(spoil.train_split("own/train.txt", b""), gone("own/train.txt")),
    ),
    Case(
        "a text file that is not UTF-8",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        spoil.train_split("own/train.txt", b"caf\xe9\n" * 5),
    ),
    Case(
        "JSON that ends early",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        spoil.train_split("own/train.jsonl", b'{"text": "fine"}\n{"text": \n'),
    ),
    Case(
        "a Parquet file that is cut short",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        spoil.torn_parquet,
    ),
    Case(
        "a Parquet file that is none",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        spoil.train_split("own/train.parquet", b"PAR1 no"),
    ),
    Case(
        "a CSV file with a row too long",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        spoil.train_split("own/train.csv", b"text\na\nb,c,d\n"),
    ),
    Case(
        "a ZIP file that is none",
        "corpus",
        "data set PROJECT/own, split train cannot be read: …",
        spoil.train_split("own/train.zip", b"PK no"),
    ),
]

REASONING = {"prompt": "Think:", "answer_prompt": "So"}
QUESTIONS = "data/corpus/tasks/rings/test.parquet"


def asked(wrong: str, message: str, **changes: object) -> Case:
    return Case(wrong, "tasks", message, task(**changes))


def answered(wrong: str, message: str, answer: object) -> Case:
    return Case(wrong, "tasks", message, spoil.rows(QUESTIONS, {"question": "q", "answer": answer}))


TASKS = [
    Case("no such file", "tasks", "the task file tasks/microworld/micro_rings.yaml is missing", gone(RINGS)),
    Case("a folder", "tasks", "tasks/microworld/micro_rings.yaml is not readable: Is a directory", folder(RINGS)),
    Case(
        "a link to nowhere",
        "tasks",
        "tasks.files: tasks/microworld/micro_rings.yaml is not in the folder tasks, which DVC watches: move it there",
        link(RINGS),
    ),
    Case("a file that is cut short", "tasks", "tasks/microworld/micro_rings.yaml: the file is empty", torn(RINGS)),
    Case(
        "not UTF-8",
        "tasks",
        "tasks/microworld/micro_rings.yaml is not readable YAML: …",
        spoil.task_text(b"title: \xff"),
    ),
    Case(
        "a key twice",
        "tasks",
        "tasks/microworld/micro_rings.yaml is not readable YAML: line 2, column 1: the key title is there twice",
        spoil.task_text(b"title: a\ntitle: b\n"),
    ),
    Case(
        "a tag",
        "tasks",
        "tasks/microworld/micro_rings.yaml is not readable YAML: line 1, column 8: it has the tag"
        " !!python/name:os.system, but values have no tags here",
        spoil.task_text(b"title: !!python/name:os.system\n"),
    ),
    Case(
        "a list",
        "tasks",
        "tasks/microworld/micro_rings.yaml: the whole file is ['title'], but must be a section",
        spoil.task_text(b"- title\n"),
    ),
    Case(
        "a file in another place",
        "tasks",
        "tasks.files: mine.yaml is not in the folder tasks, which DVC watches: move it there",
        each(lambda project: (project / RINGS).rename(project / "mine.yaml"), params(tasks__files=["mine.yaml"])),
    ),
    Case(
        "a name with a zero byte",
        "tasks",
        "tasks.files: tasks/�.yaml is no path: a path has no zero bytes",
        params(tasks__files=["tasks/\0.yaml"]),
    ),
    Case(
        "two files of one name",
        "tasks",
        "tasks.files: two files have the name micro_rings: a task is known by its file's name",
        each(
            lambda project: (project / "tasks/micro_rings.yaml").write_text((project / RINGS).read_text()),
            params(tasks__files=[RINGS, "tasks/micro_rings.yaml"]),
        ),
    ),
    asked("an unknown key", "tasks/microworld/micro_rings.yaml: there is no key few_shot", few_shot=5),
    asked(
        "an unknown key of the data",
        "tasks/microworld/micro_rings.yaml: there is no key data.rows",
        data={"path": "./data", "split": "test", "rows": 3},
    ),
    asked("no prompt", "tasks/microworld/micro_rings.yaml: prompt is missing", prompt=...),
    asked("an empty prompt", "tasks/microworld/micro_rings.yaml: prompt is empty", prompt=""),
    asked(
        "a list for the prompt",
        "tasks/microworld/micro_rings.yaml: prompt: Cannot convert 'ListConfig' to string: '['Q']'",
        prompt=["Q"],
    ),
    asked("no split", "tasks/microworld/micro_rings.yaml: data.split is missing", data={"path": "./data"}),
    asked(
        "a word for the data", "tasks/microworld/micro_rings.yaml: data is gsm8k, but must be a section", data="gsm8k"
    ),
    asked(
        "a word for the version",
        "tasks/microworld/micro_rings.yaml: version: Value 'one' of type 'str' could not be converted to Integer",
        version="one",
    ),
    asked(
        "an unknown kind",
        "tasks/microworld/micro_rings.yaml: kind is essay, but must be number or choice",
        kind="essay",
    ),
    asked(
        "choices of a number",
        "tasks/microworld/micro_rings.yaml: choices belong to kind choice, and kind choice needs them",
        choices="options",
    ),
    asked(
        "a choice without choices",
        "tasks/microworld/micro_rings.yaml: choices belong to kind choice, and kind choice needs them",
        kind="choice",
    ),
    asked(
        "labels without choices",
        "tasks/microworld/micro_rings.yaml: labels are what choices are called, but there are no choices",
        labels="letters",
    ),
    asked(
        "no legal characters",
        "tasks/microworld/micro_rings.yaml: legal is empty: name the characters of a number's tokens",
        legal="",
    ),
    asked(
        "a word for the stop strings",
        "tasks/microworld/micro_rings.yaml: stop is ., but must be a list of single values",
        stop=".",
    ),
    asked(
        "no stop strings",
        "tasks/microworld/micro_rings.yaml: stop is None, but must be a list of single values",
        stop=None,
    ),
    asked("an empty stop string", "tasks/microworld/micro_rings.yaml: a stop string is empty", stop=["\n", ""]),
    asked(
        "a word for the reasoning",
        "tasks/microworld/micro_rings.yaml: chain_of_thought is Think:, but must be a section",
        chain_of_thought="Think:",
    ),
    asked(
        "no answer prompt",
        "tasks/microworld/micro_rings.yaml: chain_of_thought.answer_prompt is missing",
        chain_of_thought={"prompt": "Think:"},
    ),
    asked(
        "an empty reasoning prompt",
        "tasks/microworld/micro_rings.yaml: chain_of_thought.prompt is empty",
        chain_of_thought=REASONING | {"prompt": ""},
    ),
    asked(
        "a prompt that is no template",
        "task Micro-world ring problems: unexpected end of template, expected 'end of print statement'.",
        prompt="Q: {{ question",
    ),
    asked(
        "an answer that is no expression",
        "task Micro-world ring problems: unexpected 'end of template'",
        answer="answer +",
    ),
    asked(
        "an answer of hundreds of brackets",
        "task Micro-world ring problems: maximum recursion depth exceeded…",
        answer="[" * 400 + "]" * 400,
    ),
    asked(
        "a prompt with half of a sign",
        "task Micro-world ring problems, question 0: 'utf-8' codec can't encode character '\\ud800' in position 0: "
        "surrogates not allowed; its columns are question, answer",
        prompt="{{ '\\ud800' }}",
    ),
    asked(
        "a prompt of a column that there is not",
        "task Micro-world ring problems, question 0: 'body' is undefined; its columns are question, answer",
        prompt="Q: {{ body }}",
    ),
    asked(
        "an answer of a column that there is not",
        "task Micro-world ring problems, question 0: 'reply' is undefined; its columns are question, answer",
        answer="reply",
    ),
    asked(
        "an answer by a number that there is not",
        "task Micro-world ring problems, question 0: list object has no element 7; its columns are question, answer",
        answer='answer.split("####")[7]',
    ),
    asked(
        "a prompt that is empty for a question",
        "task Micro-world ring problems, question 0: the prompt is empty",
        prompt="{{ '' }}",
    ),
    asked(
        "a template that reaches for Python",
        "task Micro-world ring problems, question 0: access to attribute '__class__' of 'str' "
        "object is unsafe.; its columns are question, answer",
        prompt="{{ question.__class__.__mro__ }}",
    ),
    asked(
        "choices that are no list",
        "task Micro-world ring problems, question 0: 'int' object is not iterable; its columns are question, answer",
        kind="choice",
        choices="3",
    ),
    asked(
        "a data set that is not there",
        "the folder ./nowhere does not exist: name a hub data set or a folder in the hub's layout",
        data={"path": "./nowhere", "split": "test"},
    ),
    asked(
        "a split that is not there",
        "data set ./data/corpus/tasks/rings, split extra cannot be read: …",
        data={"path": "./data/corpus/tasks/rings", "split": "extra"},
    ),
    asked(
        "a hub name without a network",
        "data set nobody/nothing, split test cannot be read: …",
        data={"path": "nobody/nothing", "split": "test"},
    ),
    Case(
        "a root that is not there",
        "tasks",
        "the folder /nowhere/a/b does not exist: name a hub data set or a folder in the hub's layout",
        each(task(data={"path": "a/b", "split": "test"}), params(tasks__root="/nowhere")),
    ),
    answered(
        "an answer without the mark",
        "task Micro-world ring problems, question 0: list object has no element 1; its columns are question, answer",
        "No mark 12",
    ),
    answered(
        "an answer that is a word",
        "task Micro-world ring problems, question 0: the answer is 'twelve', which is not a number",
        "#### twelve",
    ),
    answered(
        "an answer that is empty",
        "task Micro-world ring problems, question 0: the answer is '', which is not a number",
        "#### ",
    ),
    answered(
        "an answer that is no text",
        "task Micro-world ring problems, question 0: 'int object' has no attribute 'rsplit'; its "
        "columns are question, answer",
        3,
    ),
    answered(
        "an answer that is missing",
        "task Micro-world ring problems, question 0: 'None' has no attribute 'rsplit'; its "
        "columns are question, answer",
        None,
    ),
    Case(
        "an answer that is none of the labels",
        "tasks",
        "task Micro-world animal questions, question 0: the answer is 'F', which is not among A, B, C, D, E",
        spoil.rows(
            "data/corpus/tasks/animals/test.parquet", *(row | {"answerKey": "F"} for row in commonsense_qa_rows(2))
        ),
    ),
]


def is_missing(stage: str, path: str, message: str) -> Case:
    return Case(f"`{path}` is missing", stage, message, gone(path))


def is_torn(stage: str, path: str, message: str) -> Case:
    return Case(f"`{path}` is cut short", stage, message, torn(path))


QUIET_STAR = "models/quiet_star"
INPUTS = [
    *starmap(
        is_missing,
        (
            (
                "tasks",
                "data/corpus/tasks/rings",
                "the folder ./data/corpus/tasks/rings does not exist: name a hub data set or a folder in "
                "the hub's layout",
            ),
            (
                "tokenize",
                "data/corpus",
                "data/corpus/texts/pretrain.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "tokenize",
                "data/corpus/texts/heldout.arrow",
                "data/corpus/texts/heldout.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "base_model",
                "data/tokens",
                "the folder data/tokens/tokenizer is missing: run `dvc repro` to make it again",
            ),
            (
                "base_model",
                "data/tokens/tokenizer",
                "the folder data/tokens/tokenizer is missing: run `dvc repro` to make it again",
            ),
            (
                "base_model",
                "data/tokens/pretrain.arrow",
                "data/tokens/pretrain.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "base_model",
                "data/tokens/heldout.arrow",
                "data/tokens/heldout.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            ("train", "models/base", "the folder models/base is missing: run `dvc repro` to make it again"),
            (
                "train",
                "data/tokens/train.arrow",
                "data/tokens/train.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "train",
                "data/tokens/heldout.arrow",
                "data/tokens/heldout.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "train",
                "data/corpus/texts/probe.parquet",
                "data/corpus/texts/probe.parquet is missing or not a Parquet file: run `dvc repro` to make it again",
            ),
            ("baseline pause 1", "models/base", "the folder models/base is missing: run `dvc repro` to make it again"),
            (
                "baseline pause 1",
                "data/tokens/train.arrow",
                "data/tokens/train.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            ("evaluate", QUIET_STAR, "the folder models/quiet_star is missing: run `dvc repro` to make it again"),
            (
                "evaluate",
                f"{QUIET_STAR}/config.json",
                "models/quiet_star holds no trained model: run `dvc repro train`",
            ),
            ("evaluate", "models/base", "the folder models/base is missing: run `dvc repro` to make it again"),
            ("evaluate", "data/tasks", "data/tasks holds no task: run `dvc repro tasks`"),
            (
                "evaluate",
                "data/tasks/micro_rings.parquet",
                "data/tasks/micro_rings.parquet is missing or not a Parquet file: run `dvc repro` to make it again",
            ),
            (
                "evaluate_baseline pause 1",
                "models/baseline/pause-1",
                "the folder models/baseline/pause-1 is missing: run `dvc repro` to make it again",
            ),
            ("evaluate_baseline pause 1", "data/tasks", "data/tasks holds no task: run `dvc repro tasks`"),
            (
                "compare",
                "results/evaluate/predictions.parquet",
                "results/evaluate/predictions.parquet is missing or broken: run `dvc repro` to make it again",
            ),
            (
                "compare",
                "results/evaluate/pause-1/predictions.parquet",
                "results/evaluate/pause-1/predictions.parquet is missing or broken: run `dvc repro` to make it again",
            ),
            ("chain_of_thought", QUIET_STAR, "models/quiet_star holds no trained model: run `dvc repro train`"),
            ("chain_of_thought", "data/tasks", "data/tasks holds no task: run `dvc repro tasks`"),
            ("perplexity", QUIET_STAR, "models/quiet_star holds no trained model: run `dvc repro train`"),
            (
                "perplexity",
                "data/tokens/heldout.arrow",
                "data/tokens/heldout.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            ("report", "results/compare", "results/compare/figures.csv: no such file"),
            ("release", QUIET_STAR, "models/quiet_star holds no trained model: run `dvc repro train`"),
            ("release", "results/evaluate/metrics.json", "results/evaluate/metrics.json: no such file"),
        ),
    ),
    *starmap(
        is_torn,
        (
            ("tasks", QUESTIONS, "data set ./data/corpus/tasks/rings, split test cannot be read: …"),
            (
                "tokenize",
                "data/corpus/texts/pretrain.arrow",
                "data/corpus/texts/pretrain.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "tokenize",
                "data/corpus/texts/train.arrow",
                "data/corpus/texts/train.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "base_model",
                "data/tokens/tokenizer/tokenizer.json",
                "data/tokens/tokenizer holds no usable tokenizer: run `dvc repro` to make it again",
            ),
            (
                "base_model",
                "data/tokens/pretrain.arrow",
                "data/tokens/pretrain.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "train",
                "data/tokens/train.arrow",
                "data/tokens/train.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            (
                "train",
                "models/base/model.safetensors",
                "no usable model at models/base: …; run `dvc repro` to make it again",
            ),
            (
                "train",
                "models/base/config.json",
                "models/base holds no usable tokenizer: run `dvc repro` to make it again",
            ),
            (
                "train",
                "models/base/tokenizer.json",
                "models/base holds no usable tokenizer: run `dvc repro` to make it again",
            ),
            (
                "evaluate",
                "data/tasks/micro_rings.parquet",
                "data/tasks/micro_rings.parquet is missing or not a Parquet file: run `dvc repro` to make it again",
            ),
            ("evaluate", "data/tasks/micro_rings.yaml", "data/tasks/micro_rings.yaml: the file is empty"),
            (
                "compare",
                "results/evaluate/predictions.parquet",
                "results/evaluate/predictions.parquet is missing or broken: run `dvc repro` to make it again",
            ),
            ("chain_of_thought", "data/tasks/micro_rings.yaml", "data/tasks/micro_rings.yaml: the file is empty"),
            (
                "perplexity",
                "data/tokens/heldout.arrow",
                "data/tokens/heldout.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
            ),
            ("report", "results/train/metrics.json", "results/train/metrics.json: cannot be read: …"),
            ("report", "results/compare/figures.csv", "results/compare/figures.csv: no column ci_high"),
        ),
    ),
    Case(
        "`data/corpus/texts` is a file",
        "tokenize",
        "data/corpus/texts/pretrain.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
        file("data/corpus/texts"),
    ),
    Case(
        "`data/tokens/train.arrow` is a folder",
        "train",
        "data/tokens/train.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
        folder("data/tokens/train.arrow"),
    ),
    Case(
        "`data/tasks/micro_rings.parquet` is a folder",
        "evaluate",
        "data/tasks/micro_rings.parquet is missing or not a Parquet file: run `dvc repro` to make it again",
        folder("data/tasks/micro_rings.parquet"),
    ),
    Case(
        "`models/base` is a file",
        "train",
        "the folder models/base is missing: run `dvc repro` to make it again",
        file("models/base"),
    ),
    Case(
        "`models/base` is a link to nowhere",
        "train",
        "the folder models/base is missing: run `dvc repro` to make it again",
        link("models/base"),
    ),
    Case(
        "`data/tokens/heldout.arrow` is a link to nowhere",
        "perplexity",
        "data/tokens/heldout.arrow is missing or not an Arrow file: run `dvc repro` to make it again",
        link("data/tokens/heldout.arrow"),
    ),
    *(
        Case(
            "tokens of another vocabulary",
            stage,
            f"{path} does not hold spans for this model: run `dvc repro` to make it again",
            each(params(tokenize__vocabulary=900), spoil.ran("tokenize")),
        )
        for stage, path in (("train", "data/tokens/….arrow"), ("perplexity", "data/tokens/heldout.arrow"))
    ),
    Case(
        "tokens in other columns",
        "base_model",
        "data/tokens/pretrain.arrow does not hold the columns input_ids: list<item: int32>, length: int32: run `dvc "
        "repro` to make it again",
        spoil.arrow("data/tokens/pretrain.arrow", ids=[[1, 2]]),
    ),
    *(
        Case(
            f"texts {wrong}",
            "tokenize",
            "data/corpus/texts/train.arrow does not hold the columns text: string: run `dvc repro` to make it again",
            spoil.arrow("data/corpus/texts/train.arrow", **columns),
        )
        for wrong, columns in (
            ("in another column", {"body": ["words"]}),
            ("that are numbers", {"text": [1, 2]}),
            ("one of which is missing", {"text": ["words", None]}),
        )
    ),
    *(
        Case(
            f"predictions {wrong}",
            "compare",
            "results/evaluate/predictions.parquet is missing or broken: run `dvc repro` to make it again",
            way,
        )
        for wrong, way in (
            ("without a row", spoil.no_rows("results/evaluate/predictions.parquet")),
            (
                "of which one is right by a word",
                spoil.rows(
                    "results/evaluate/predictions.parquet",
                    {"task": "a", "index": 0, "prompt": "?", "way": "thought", "correct": "yes", "prob": 0.5},
                ),
            ),
        )
    ),
    Case(
        "metrics nested too deep",
        "report",
        "results/train/metrics.json: cannot be read: maximum recursion depth exceeded…",
        holds("results/train/metrics.json", b"[" * 100_000),
    ),
    Case(
        "a task without questions",
        "evaluate",
        "data/tasks/micro_rings.parquet has no questions",
        spoil.no_rows("data/tasks/micro_rings.parquet"),
    ),
    Case(
        "questions of another shape",
        "evaluate",
        "data/tasks/micro_rings.parquet does not hold questions: run `dvc repro tasks` to make it again",
        spoil.rows("data/tasks/micro_rings.parquet", {"body": "What?"}),
    ),
    Case(
        "choices that begin with different tokens",
        "evaluate",
        "this tokenizer does not tell the choices A, the end apart by one token: a larger tokenize.vocabulary may",
        spoil.rows("data/tasks/micro_animals.parquet", {"prompt": "?", "answer": "A", "labels": ["A", "the end"]}),
    ),
]

WEIGHTS, CONFIG = f"{QUIET_STAR}/model.safetensors", f"{QUIET_STAR}/config.json"


def nans(tensors: dict) -> dict:
    return {name: tensor * float("nan") for name, tensor in tensors.items()}


def fewer(tensors: dict) -> dict:
    return dict(list(tensors.items())[1:])


def trained_of(stage: str, message: str) -> Case:
    return Case("a base model in the trained one's place", stage, message, trained_is_base)


def trained_is_base(project: Path) -> None:
    gone(QUIET_STAR)(project)
    shutil.copytree(project / "models/base", project / QUIET_STAR)


CHECKPOINTS = [
    Case(
        "no such model",
        "tokenize",
        "there is no model at PROJECT/models/unknown: the folder does not exist",
        params(base_model__source="hub", base_model__path="PROJECT/models/unknown"),
    ),
    Case(
        "no such model",
        "base_model",
        "there is no model at PROJECT/models/unknown: the folder does not exist",
        params(base_model__source="hub", base_model__path="PROJECT/models/unknown"),
    ),
    Case(
        "a model that was trained here as the base model",
        "base_model",
        "the model in PROJECT/models/quiet_star cannot think: it is a trained Quiet-STaR model: name the one that it "
        "was trained on",
        params(base_model__source="hub", base_model__path="PROJECT/models/quiet_star"),
    ),
    Case(
        "no seed",
        "baseline pause",
        "usage: python -m stages.baseline METHOD SEED (all else is in params.yaml)",
        lambda project: None,
    ),
    Case(
        "a seed that is a word",
        "baseline pause one",
        "params.yaml: train.seed: Value 'one' of type 'str' could not be converted to Integer",
        lambda project: None,
    ),
    Case(
        "a method that there is not",
        "baseline magic 1",
        "params.yaml: train.method is magic, but must be one of quiet_star, pause, no_thought",
        lambda project: None,
    ),
    Case(
        "no seed",
        "evaluate_baseline pause",
        "usage: python -m stages.evaluate_baseline METHOD SEED (all else is in params.yaml)",
        lambda project: None,
    ),
    Case(
        "an option that there is not",
        "train --help",
        "usage: python -m stages.train (all else is in params.yaml)",
        lambda project: None,
    ),
    Case(
        "weights of more layers than the configuration's",
        "base_model",
        "the weights in PROJECT/model are of more layers than its config.json: transformer.h.1.…",
        each(model(n_layer=2), spoil.config("model/config.json", n_layer=1)),
    ),
    Case(
        "a hub model without a network",
        "base_model",
        "no usable model at nobody/nothing: …",
        params(base_model__source="hub", base_model__path="nobody/nothing"),
    ),
    Case(
        "no tokenizer",
        "tokenize",
        "no tokenizer at PROJECT/model: its files are missing",
        each(model(), gone("model/tokenizer.json", "model/tokenizer_config.json")),
    ),
    Case(
        "a tokenizer that is cut short",
        "tokenize",
        "no tokenizer at PROJECT/model: …",
        each(model(), torn("model/tokenizer.json")),
    ),
    Case(
        "pickled weights only",
        "base_model",
        "no usable model at PROJECT/model: Error no file named model.safetensors found in directory …",
        each(model(after=("tokenize",)), spoil.pickled("model/pytorch_model.bin", "model/model.safetensors")),
    ),
    Case(
        "pickled weights named safetensors",
        "base_model",
        "no usable model at PROJECT/model: …",
        each(model(after=("tokenize",)), spoil.pickled("model/model.safetensors", "model/model.safetensors")),
    ),
    Case(
        "code of its own",
        "base_model",
        "no usable model at PROJECT/model: … contains custom code which must be executed …",
        spoil.own_code,
    ),
    Case(
        "no weights",
        "base_model",
        "no usable model at PROJECT/model: Error no file named model.safetensors found in directory …",
        each(model(), gone("model/model.safetensors")),
    ),
    Case(
        "weights that are cut short",
        "base_model",
        "no usable model at PROJECT/model: …",
        each(model(), torn("model/model.safetensors")),
    ),
    Case(
        "weights of another size",
        "base_model",
        "the weights in PROJECT/model are not those of its config.json: …",
        each(model(after=("tokenize",)), spoil.config("model/config.json", n_embd=32)),
    ),
    Case(
        "weights of fewer layers",
        "base_model",
        "the weights in PROJECT/model are not those of its config.json: transformer.h.1.…",
        each(model(after=("tokenize",)), spoil.config("model/config.json", n_layer=2)),
    ),
    Case(
        "weights that are no numbers (NaN)",
        "base_model",
        "the weights in PROJECT/model are not all finite numbers: train again, with a lower learning rate",
        each(model(after=("tokenize",)), spoil.weights("model/model.safetensors", nans)),
    ),
    Case(
        "a configuration that is no JSON",
        "base_model",
        "no usable model at PROJECT/model: …",
        each(model(), holds("model/config.json", b"{model_type: gpt2}")),
    ),
    Case(
        "a configuration that is a list",
        "base_model",
        "no usable model at PROJECT/model: …",
        each(model(), holds("model/config.json", b"[]")),
    ),
    Case(
        "an unknown kind of model",
        "base_model",
        "no usable model at PROJECT/model: …",
        each(model(), spoil.config("model/config.json", model_type="magic")),
    ),
    Case(
        "state-space layers",
        "base_model",
        "the model in PROJECT/model cannot think: mamba: a thought run in parallel differs by …%",
        model("mamba", after=("tokenize",)),
    ),
    Case(
        "ALiBi",
        "base_model",
        "the model in PROJECT/model cannot think: bloom: a thought run in parallel differs by …%",
        model("bloom", after=("tokenize",)),
    ),
    Case(
        "fewer embeddings than tokens",
        "base_model",
        "the model has embeddings for 167 tokens, but its tokenizer has 500",
        model(),
    ),
    Case(
        "fewer positions than a span",
        "train",
        "a span and its last thought need 53 positions, but the base model has 48",
        each(params(tokenize__span=48), model(after=("tokenize", "base_model"), n_positions=48)),
    ),
    Case(
        "fewer positions than a probe's prompt",
        "train",
        "a probe's prompt and its last thought need 63 positions, but the base model has 48",
        each(params(tokenize__span=16), model(after=("tokenize", "base_model"), n_positions=48)),
    ),
    Case(
        "fewer positions than a question",
        "evaluate",
        "a question of micro_animals (base) needs 80 positions, but the base model has 48",
        each(
            spoil.no_rows("data/corpus/texts/probe.parquet"),
            params(tokenize__span=16),
            model(after=("tokenize", "base_model", "train"), n_positions=48),
        ),
    ),
    Case(
        "fewer positions than a question and its thought",
        "evaluate",
        "a question of micro_animals and its last thought need 84 positions, but the base model has 80",
        each(
            spoil.no_rows("data/corpus/texts/probe.parquet"),
            params(tokenize__span=16),
            model(after=("tokenize", "base_model", "train"), n_positions=80),
        ),
    ),
    Case(
        "a trained model's weights cut short",
        "evaluate",
        "the model in models/quiet_star cannot be read: …",
        torn(WEIGHTS),
    ),
    Case(
        "a trained model's weights cut short",
        "chain_of_thought",
        "the model in models/quiet_star cannot be read: …",
        torn(WEIGHTS),
    ),
    Case(
        "a trained model's weights cut short",
        "perplexity",
        "the model in models/quiet_star cannot be read: …",
        torn(WEIGHTS),
    ),
    Case(
        "a trained model's configuration cut short",
        "evaluate",
        "models/quiet_star holds no usable tokenizer: run `dvc repro` to make it again",
        torn(CONFIG),
    ),
    Case(
        "a trained model's configuration cut short",
        "perplexity",
        "models/quiet_star holds no trained model: run `dvc repro train`",
        torn(CONFIG),
    ),
    Case(
        "a trained model's tokenizer cut short",
        "evaluate",
        "models/quiet_star holds no usable tokenizer: run `dvc repro` to make it again",
        torn(f"{QUIET_STAR}/tokenizer.json"),
    ),
    Case(
        "a trained model's tokenizer cut short",
        "perplexity",
        "models/quiet_star holds no usable tokenizer: run `dvc repro` to make it again",
        torn(f"{QUIET_STAR}/tokenizer.json"),
    ),
    Case(
        "a trained model with pickled weights",
        "evaluate",
        "the model in models/quiet_star cannot be read: Error no file named model.safetensors found …",
        spoil.pickled(f"{QUIET_STAR}/pytorch_model.bin", WEIGHTS),
    ),
    Case(
        "a trained model with a pickle for safetensors",
        "evaluate",
        "the model in models/quiet_star cannot be read: …",
        spoil.pickled(WEIGHTS, WEIGHTS),
    ),
    Case(
        "a trained model with fewer weights",
        "evaluate",
        "the weights in models/quiet_star are not those of its config.json: base.lm_head.weight",
        spoil.weights(WEIGHTS, fewer),
    ),
    Case(
        "a trained model with weights that are no numbers",
        "evaluate",
        "the weights in models/quiet_star are not all finite numbers: train again, with a lower learning rate",
        spoil.weights(WEIGHTS, nans),
    ),
    Case(
        "a trained model with weights that are no numbers",
        "perplexity",
        "the weights in models/quiet_star are not all finite numbers: train again, with a lower learning rate",
        spoil.weights(WEIGHTS, nans),
    ),
    *(
        Case(
            "a base model with weights that are no numbers",
            stage,
            "the weights in models/base are not all finite numbers: train again, with a lower learning rate",
            spoil.weights("models/base/model.safetensors", nans),
        )
        for stage in ("train", "baseline pause 1", "evaluate")
    ),
    *(
        Case(
            "a base model with fewer weights",
            stage,
            "the weights in models/base are not those of its config.json: …; run `dvc repro` to make it again",
            spoil.weights("models/base/model.safetensors", fewer),
        )
        for stage in ("train", "evaluate")
    ),
    Case(
        "a trained model with weights of another size",
        "evaluate",
        "the weights in models/quiet_star are not those of its config.json: …",
        replaced(CONFIG, '"intermediate_size": 24', '"intermediate_size": 32'),
    ),
    *(
        Case(
            f"a trained model whose configuration has {old} as {new}",
            "perplexity",
            f"the model in models/quiet_star cannot be read: {message}",
            replaced(CONFIG, f'"{old}": ', f'"{old}": {new}, "was": '),
        )
        for old, new, message in (
            ("hidden_size", '"x"', "Validation error for field 'hidden_size': …"),
            ("num_attention_heads", "3", "Class validation error for validator 'validate_architecture': …"),
            ("rope_parameters", "3", "Validation error for field 'rope_parameters': …"),
            ("base", '"x"', "base must be the configuration of a decoder, with its model_type"),
            ("thought_tokens", '"x"', "thought_tokens is 'x', but must be a whole number of at least 1"),
            ("meta_token_scale", '"x"', "meta_token_scale, policy_weight and policy_temperature must be numbers"),
            ("start_token_id", '"x"', "start_token_id and end_token_id must be whole numbers or nothing"),
        )
    ),
    Case(
        "a trained model whose base has no kind",
        "perplexity",
        "the model in models/quiet_star cannot be read: base must be the configuration of a decoder, with its "
        "model_type",
        spoil.config(CONFIG, base={"hidden_size": 16}),
    ),
    *(
        Case(
            "what was learned without its base model",
            stage,
            "models/quiet_star holds only what was trained: the model that it was trained on must be in models/base",
            each(
                params(train__adapt="frozen", train__saved="learned", baseline__methods=["pause"]),
                spoil.ran("train"),
                gone("models/base"),
            ),
        )
        for stage in ("chain_of_thought", "perplexity", "release")
    ),
    Case(
        "what was learned, with weights that are no numbers",
        "evaluate",
        "the weights in models/quiet_star are not all finite numbers: train again, with a lower learning rate",
        each(
            params(train__adapt="frozen", train__saved="learned", baseline__methods=["pause"]),
            spoil.ran("train"),
            spoil.weights("models/quiet_star/learned.safetensors", nans),
        ),
    ),
    trained_of("evaluate", "models/quiet_star holds a llama model, not a trained Quiet-STaR one"),
    trained_of("chain_of_thought", "models/quiet_star holds a llama model, not a trained Quiet-STaR one"),
    trained_of("perplexity", "models/quiet_star holds a llama model, not a trained Quiet-STaR one"),
]

FULL = (
    ("corpus", "data", params(corpus__microworld__pretrain_documents=30_000)),
    ("tasks", "data", lambda project: None),
    ("tokenize", "data", lambda project: None),
    ("base_model", "models", params(base_model__scratch__hidden_size=256)),
    ("train", "models", lambda project: None),
    ("baseline pause 1", "models", lambda project: None),
    ("evaluate", "results", lambda project: None),
    ("evaluate_baseline pause 1", "results", lambda project: None),
    ("compare", "results", lambda project: None),
    ("chain_of_thought", "results", lambda project: None),
    ("perplexity", "results", lambda project: None),
    ("report", "results", lambda project: None),
    ("release", "models", lambda project: None),
    ("train", ".resume", lambda project: None),
    ("chain_of_thought", ".resume", lambda project: None),
)
READ_ONLY = (
    ("corpus", "data/corpus"),
    ("tasks", "data"),
    ("tokenize", "data"),
    ("base_model", "models"),
    ("train", "models"),
    ("evaluate", "results/evaluate"),
    ("compare", "results/compare"),
    ("perplexity", "results/perplexity"),
    ("report", "results/report"),
    ("train", ".resume/train/quiet_star"),
    ("evaluate", ".resume/evaluate/quiet_star"),
)


def full(stage: str, where: str, change: spoil.Spoil) -> Case:
    during = partial(spoil.small_disk, path=where)
    return Case(f"`{where}` is on a full disk", stage, f"No space left on device: {where}/…", change, during)


def read_only(stage: str, where: str) -> Case:
    during = partial(spoil.immutable, path=where)
    return Case(f"`{where}` cannot be written to", stage, f"Operation not permitted: {where}/…", during=during)


PLACES = [
    *starmap(full, FULL),
    *starmap(read_only, READ_ONLY),
    Case(
        "`results/evaluate` is a file",
        "evaluate",
        "Not a directory: results/evaluate/predictions.parquet.part",
        file("results/evaluate"),
    ),
    Case(
        "`results` is a file", "perplexity", "Not a directory: results/perplexity/tokens.parquet.part", file("results")
    ),
    Case("`data/corpus` is a file", "corpus", "Not a directory: data/corpus/texts.part", file("data/corpus")),
    Case(
        "`models` is a link to nowhere",
        "release",
        "models/quiet_star holds no trained model: run `dvc repro train`",
        link("models"),
    ),
    Case(
        "`.resume` is a file",
        "chain_of_thought",
        "Not a directory: .resume/chain_of_thought/…",
        file(".resume"),
    ),
]
ENVIRONMENT = [
    Case(
        "DVC_ROOT is a file",
        "chain_of_thought",
        "Not a directory: params.yaml/.resume/chain_of_thought/…",
        environment={"DVC_ROOT": "params.yaml"},
    ),
    Case(
        "DVC_ROOT cannot be written to",
        "chain_of_thought",
        "No such file or directory: /proc/.resume",
        environment={"DVC_ROOT": "/proc"},
    ),
    Case(
        "WORLD_SIZE of a launcher is a word",
        "train",
        "the environment variable WORLD_SIZE is 'abc', but must be a number",
        environment=dict.fromkeys(LAUNCHED, "0") | {"WORLD_SIZE": "abc"},
    ),
    Case(
        "CUDA_VISIBLE_DEVICES is nonsense",
        "train",
        "device is cuda, but no CUDA GPU is usable here: set it to auto or cpu",
        params(train__device="cuda"),
        environment={"CUDA_VISIBLE_DEVICES": "none"},
    ),
]
GROUPS: dict[str, list[Case]] = {
    "Parameters": PARAMETERS,
    "Corpora": CORPORA,
    "Task files and questions": TASKS,
    "Inputs from other stages": INPUTS,
    "Checkpoints": CHECKPOINTS,
    "Places to write to": PLACES,
    "Environment": ENVIRONMENT,
}
CASES = [case for cases in GROUPS.values() for case in cases]
