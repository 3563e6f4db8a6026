"""A run on a real model and real text: `python -m pipeline.ablations.real [--model FOLDER] [--root FOLDER] [WORD ...]`.

FOLDER of --model is a base model (default: the preset's, from the hub), of --root data sets in the hub's layout; a WORD
is one of `python -m pipeline.preset` (default: data=textbooks). Quiet-STaR, the same without rewards and continued
pretraining, or the arms of a given method=NAME, with thoughts exchanged. The run is a DVC experiment: the workspace
stays as it is. Writes results/real/report.html, summary.json and compare/.
"""

from pathlib import Path

import pandas as pd

from pipeline import errors
from pipeline.ablations import experiments
from pipeline.ablations.grid import check_given
from pipeline.ablations.single import run_single
from pipeline.preset import options as preset

OUT = Path("results/real")
METHODS = ("quiet_star", "no_policy", "no_thought", "before")
WORDS = ("model=smollm2-135m", "scale=study", "train.evaluation_steps=100")
# half the evaluation of the ladder's arms, so that it takes less than an hour on two cores
SMALL = ("evaluate.questions=50", "perplexity.texts=48")
TEXTBOOKS, ASKED = "data=textbooks", "tasks.files=[tasks/text/commonsense_qa_text.yaml]"


def main() -> None:
    parser = experiments.parser("python -m pipeline.ablations.real", __doc__)
    parser.add_argument("words", nargs="*", metavar="WORD")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--root", type=Path)
    given = parser.parse_args()
    check_given(given.model, given.root)
    if not any(word.startswith("data=") for word in given.words):
        given.words.append(TEXTBOOKS)
    words = [*WORDS, *SMALL, *([ASKED] if TEXTBOOKS in given.words else []), "arms.seeds=[1]"]
    if not any(word.startswith("method=") for word in given.words):  # which has arms of its own
        words.append(f"arms.methods=[{','.join(METHODS)}]")
    words += given.words
    if given.model is not None:
        words.append(f"base_model.path={given.model.resolve()}")
    values = preset.options(words, None if given.root is None else str(given.root.resolve()))
    run_single("real", values, OUT)
    print(pd.read_csv(OUT / "compare/comparisons.csv").to_string(index=False))


if __name__ == "__main__":
    errors.run(main)
