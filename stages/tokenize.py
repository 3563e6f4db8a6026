"""Train or fetch the tokenizer and cut the texts into spans of tokens."""

from pathlib import Path

from pipeline import errors, params
from pipeline.data.tokens.tokenize import write_tokens


def main() -> None:
    every = params.load()
    write_tokens(every.tokenize, every.base_model, texts=Path("data/corpus/texts"), out=Path("data/tokens"))


if __name__ == "__main__":
    errors.run_stage(main)
