"""Write the base model of a trained one alone, without thoughts, for servers that know only its architecture.

    python -m pipeline.publish.plain models/release models/plain

Its weights are those that training changed, so it predicts as the trained model does with thoughts off
(`generate(..., think=False)`): what is gained by thinking is not in it.
"""

import argparse
from pathlib import Path

from pipeline.errors import run
from pipeline.files import replacing
from pipeline.models.base import read_tokenizer
from pipeline.models.trained import load_trained
from pipeline.publish.folder import new_folder
from pipeline.thought.model import SPECIAL


def main(arguments: list[str] | None = None) -> None:
    """Write the folder. Raises UserError if the source holds no trained model, and if the output exists."""
    about = "Write a trained model's base alone, without thoughts."
    parser = argparse.ArgumentParser(prog="python -m pipeline.publish.plain", description=about)
    parser.add_argument("source", type=Path, help="the folder of a trained model")
    parser.add_argument("out", type=Path, help="the folder to write, which must be new or empty")
    options = parser.parse_args(arguments)
    out = new_folder(options.out)
    model, tokenizer = load_trained(options.source), read_tokenizer(options.source)
    base = model.base
    for name in SPECIAL:  # of which a configuration knows one each, and the trained model all end tokens
        setattr(base.generation_config, name, getattr(model.generation_config, name))
    with replacing(out) as folder:
        base.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    size = sum(parameter.numel() for parameter in base.parameters())
    print(f"{options.out}: {type(base).__name__} of {size:,} parameters, without thoughts")


if __name__ == "__main__":
    run(main, anywhere=True)
