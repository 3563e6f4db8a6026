"""A small project with one quick stage in place of the graph, and a stub that takes the place of DVC."""

import re
import shutil
from pathlib import Path

import pandas as pd
import yaml

from tests.chaos import kills

ROOT = Path(__file__).parents[2]
# accuracy is a tenth of the thought length
STAGE = """
import sys, time
from pathlib import Path
import yaml

params = yaml.safe_load(Path("params.yaml").read_text())
train, methods, base = params["train"], params["arms"]["methods"], params["base_model"]["seed"]
length, lookahead = train["thought_tokens"], train["lookahead"]
Path("results/compare").mkdir(parents=True, exist_ok=True)
with open({log!r}, "a") as log:
    log.write(f"start {{length}} {{lookahead}}\\n")
time.sleep(0 if base == {quick_base} else {seconds})
if (length, lookahead) == {broken}:
    sys.exit("error: this one breaks")
rows = [("micro", "accuracy", method, 1, 10, 5, length / 10 + {shift}, 0.0, 1.0) for method in methods]
rows += [("micro", "prob", method, 1, 10, 5, 0.5, 0.4, 0.6) for method in methods]
rows += [("micro", "accuracy", f"{{method}}/swapped", 1, 10, 5, base / 100, 0.0, 1.0) for method in methods[:1]]
lines = ["task,measure,arm,seeds,n,groups,value,low,high", *(",".join(map(str, row)) for row in rows)]
Path("results/compare/figures.csv").write_text("\\n".join(lines) + "\\n")
with open({log!r}, "a") as log:
    log.write(f"end {{length}} {{lookahead}}\\n")
print("compare: 2 s")
"""
OUTS = [{"results/compare/figures.csv": {"cache": False}}]
COMPARE = {
    "cmd": "python -m stages.toy",
    "deps": ["stages/toy.py"],
    "params": ["train", "arms", "base_model"],
    "outs": OUTS,
}
GRID = {"methods": ["quiet_star"], "thought_tokens": [1, 3], "lookaheads": [1], "seeds": [1]}
# as much of DVC as pipeline.ablations uses: an experiment is a commit with the parameters and what the stage wrote
STUB = """
import subprocess, sys
from pathlib import Path
import yaml

words = sys.argv[1:]
if words[0] == "exp":
    params = yaml.safe_load(Path("params.yaml").read_text())
    for word in words[6::2]:
        name, value = word.split("=", 1)
        *sections, key = name.split(".")
        section = params
        for one in sections:
            section = section[one]
        section[key] = yaml.safe_load(value)
    Path("params.yaml").write_text(yaml.safe_dump(params))
    if subprocess.run([sys.executable, "-m", "stages.toy"]).returncode:
        sys.exit("ERROR: failed to reproduce 'compare'")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    subprocess.run(["git", "add", "--all"], check=True)
    subprocess.run(["git", "commit", "-qm", "experiment"], check=True)
    ref = f"refs/exps/{commit[:2]}/{commit[2:]}/{words[3]}"
    subprocess.run(["git", "update-ref", ref, "HEAD"], check=True)
elif words[0] == "cache":
    print(".dvc/cache")
"""


class Project:
    """A repository with the toy graph; its log tells which arms have started, and which stages have ended well."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.log = folder.parent / f"{folder.name}.log"
        folder.mkdir()
        self.log.touch()
        for name in ("params.yaml", ".gitignore", ".dvcignore"):
            shutil.copy(ROOT / name, folder)
        (folder / "stages").mkdir()
        (folder / "stages/__init__.py").touch()
        (folder / ".dvc").mkdir()
        (folder / ".dvc/.gitignore").write_text("/config.local\n/tmp\n/cache\n")
        (folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"compare": COMPARE}}))
        self.grid()
        self.stage()
        self.call("git", "init", "-q", "-b", "main")
        self.commit()

    def grid(self, **changes: object) -> None:
        (self.folder / "grid.yaml").write_text(yaml.safe_dump(GRID | changes))

    def stage(
        self, seconds: float = 0, broken: tuple[int, int] = (0, 0), shift: float = 0, quick_base: int = 0
    ) -> None:
        text = STAGE.format(seconds=seconds, broken=broken, shift=shift, quick_base=quick_base, log=str(self.log))
        (self.folder / "stages/toy.py").write_text(text)

    def commit(self) -> None:
        self.call("git", "add", "--all")
        self.call("git", "commit", "-qm", "a change")

    def call(self, *words: str) -> str:
        return kills.call(self.folder, *words)

    @property
    def started(self) -> list[str]:
        return re.findall("start (.*)", self.log.read_text())

    @property
    def ran(self) -> list[str]:
        return re.findall("end (.*)", self.log.read_text())

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "results/grid.csv")

    def accuracies(self) -> dict[tuple[int, int], float]:
        rows = self.table.query("measure == 'accuracy' and method == 'quiet_star'")
        return {(k, a): mean for k, a, mean in zip(rows.thought_tokens, rows.lookahead, rows["value"], strict=True)}
