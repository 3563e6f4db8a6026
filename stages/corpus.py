"""Make or fetch the corpus and the evaluation questions."""

from pathlib import Path

from pipeline import errors, params
from pipeline.data.corpus.build import write_corpus


def main() -> None:
    every = params.load()
    pretrain = every.base_model.pretrains
    write_corpus(every.corpus, pretrain, texts=Path("data/corpus/texts"), tasks=Path("data/corpus/tasks"))


if __name__ == "__main__":
    errors.run_stage(main)
