"""Convert a checkpoint of the Quiet-STaR authors' own code into a folder of a trained model.

    python -m pipeline.publish.authors quietstar-8-ahead models/quietstar --n-ahead 8 --n-ahead-talk 4 --n-passes 2

Their code is https://github.com/ezelikman/quiet-star, their checkpoint https://huggingface.co/ezelikman/quietstar-8-ahead.
"""

import argparse
import json
import logging
from functools import reduce
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import MistralConfig, PreTrainedTokenizerBase

from pipeline.data.tokens.tokenizer import pretrained_tokenizer
from pipeline.errors import UserError, reason, run
from pipeline.files import replacing
from pipeline.params import BaseModel
from pipeline.publish.folder import new_folder
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

FORWARD_PASSES = 3  # their n_ahead counts the text pass, the start token and the end token beside the K sampled tokens
META_TOKENS = {"start_token_id": "<|startthought|>", "end_token_id": "<|endthought|>"}
# The flags of their config.json that change the model, with the values that they train and publish. Their code never
# reads the others (merged_talk_heads, merged_lm_and_think_heads, use_shallow_think, use_complex_think_head).
VARIANT = {
    "merged_lm_and_talk_heads": False,
    "use_concat_talk_head": True,
    "use_shallow_talk": False,
    "use_complex_talk_head": True,
    "use_weighted_talk_head": True,
    "use_start_thought_token": True,
    "use_end_thought_token": True,
}

log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    """Convert a checkpoint and print one line. Raises UserError for any other folder, and if the output exists."""
    about = "Read a checkpoint of the Quiet-STaR authors' code."
    parser = argparse.ArgumentParser(prog="python -m pipeline.publish.authors", description=about)
    parser.add_argument("source", type=Path, help="a folder with their checkpoint, as the hub lays it out")
    parser.add_argument("out", type=Path, help="the folder to write, which must be new or empty")
    # names and defaults are those of the authors' script for their published model
    parser.add_argument("--n-ahead", type=int, default=8, help="thought tokens K and 3 more (8)")
    parser.add_argument("--n-ahead-talk", type=int, default=4, help="true tokens A that a thought is judged by (4)")
    parser.add_argument("--n-passes", type=int, default=2, help="thoughts R at a position (2)")
    options = parser.parse_args(arguments)
    counts = from_their_counts(options.n_ahead, options.n_ahead_talk, options.n_passes)
    if min(counts.values()) < 1:
        raise UserError(f"--n-ahead must be at least {FORWARD_PASSES + 1}, --n-ahead-talk and --n-passes at least 1")
    source, out = options.source, new_folder(options.out)
    config = read_config(source)
    expected = options.n_ahead + options.n_ahead_talk + 1  # as their scripts set max_thoughts
    if config.get("max_thoughts", expected) != expected:
        told = "config.json has max_thoughts %s, where --n-ahead and --n-ahead-talk would make it %d: are they right?"
        log.warning(told, config["max_thoughts"], expected)
    state = read_weights(source)
    tokenizer = pretrained_tokenizer(BaseModel(path=str(source)))
    try:
        ids = meta_token_ids(tokenizer, len(state.get("model.embed_tokens.weight", ())))
        model = from_authors(state, config, **counts, **ids)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    with replacing(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    size, dtype = sum(p.numel() for p in model.parameters()), str(model.dtype).removeprefix("torch.")
    thoughts = "{thought_tokens} thought tokens, lookahead {lookahead}, {rationales} rationales".format(**counts)
    banned = f"never sampled: {', '.join(map(str, model.config.banned)) or 'no id'}"
    print(f"{options.out}: {size:,} parameters in {dtype}, {thoughts}; {banned}")


def read_config(source: Path) -> dict:
    """Read their config.json. Raises UserError if it is missing, or of a model that this package does not have."""
    if not source.is_dir():
        hub = f"hf download ezelikman/quietstar-8-ahead --local-dir {source}"
        raise UserError(f"{source} is not a folder: download the checkpoint first, say with `{hub}`")
    config = _read_json(source / "config.json")
    if config.get("model_type") != "mistral":
        raise UserError(f"{source} holds a {config.get('model_type')} model, but the authors' code trains mistral")
    for name, value in VARIANT.items():
        if config.get(name, value) is not value:
            found = f"{name} is {json.dumps(config[name])}, a variant that is not implemented here"
            raise UserError(f"{source}/config.json: {found} (the published checkpoint has {json.dumps(value)})")
    return config


def read_weights(source: Path) -> dict[str, Tensor]:
    """Map all tensors from the checkpoint's file or shards. Raises UserError if one is missing, broken or pickled."""
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").is_file():
        names = ["model.safetensors"]
    elif index.is_file():
        try:
            names = sorted(set(map(str, _read_json(index)["weight_map"].values())))
        except (KeyError, AttributeError, TypeError) as error:
            raise UserError(f"{index} names no files of weights: download it again") from error
    elif pickled := sorted(path.name for ending in ("bin", "pt", "pth") for path in source.glob(f"*.{ending}")):
        found = f"no safetensors weights but pickled ones, which can run any code when they are read ({pickled[0]})"
        raise UserError(f"{source} holds {found}: convert them to safetensors where you trust them")
    else:
        raise UserError(f"{source} holds no weights: neither model.safetensors nor {index.name}")
    state: dict[str, Tensor] = {}
    for name in names:
        try:
            state |= load_file(source / name)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{source / name} is missing or broken: download it again ({reason(error)})") from error
    return state


def _read_json(path: Path) -> dict:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is missing or broken: {error}") from error


def meta_token_ids(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int | None]:
    """Return `QuietStarConfig`'s ids of the meta-tokens; None if the embedding table (``rows``) has no row for them.

    Their script adds the meta-tokens to Mistral's tokenizer but does not save it, so they are added here if exactly
    their rows are left. Raises ValueError if the tokenizer has more tokens than the table.
    """
    new = [token for token in META_TOKENS.values() if token not in tokenizer.get_vocab()]
    if len(tokenizer) + len(new) == rows:
        tokenizer.add_tokens(new, special_tokens=True)
    if len(tokenizer) > rows:
        raise ValueError(f"the model has embeddings for {rows} tokens, but its tokenizer has {len(tokenizer)}")
    return {name: tokenizer.get_vocab().get(token) for name, token in META_TOKENS.items()}


def from_authors(state: dict[str, Tensor], config: dict, **settings: object) -> QuietStarForCausalLM:
    """Make our model from their ``state`` dict and Mistral ``config``; ``settings`` are `QuietStarConfig`'s.

    The model has their dtype (the widest, if there are several) and shares the tensors of ``state``, without a copy.
    Raises ValueError if ``state`` and ``config`` are not of their code.
    """
    known = {*MistralConfig().to_dict(), "rope_theta"}  # transformers 5 still reads rope_theta, but keeps it elsewhere
    try:
        base = MistralConfig(**{name: value for name, value in config.items() if name in known})
        ours = QuietStarConfig(base=base.to_dict(), **settings)
        with torch.device("meta"):
            expected = QuietStarForCausalLM(ours).state_dict()  # names and shapes only
    except Exception as error:  # transformers, huggingface_hub and torch raise many types
        raise ValueError(f"config.json is not one of theirs: {reason(error)}") from error
    weights = {}
    for name, value in state.items():
        if name in ("start_embedding", "end_embedding"):
            weights[name] = value[0].clone()  # the mean; row 1, a log standard deviation, is unused (paper's setting)
        elif name.startswith("talk_head.0."):
            weights[name.replace("talk_head.0.", "mixing_head.")] = value
        else:
            weights[f"base.{name}"] = value
    for name in sorted({*expected, *weights}):
        theirs = name.removeprefix("base.").replace("mixing_head.", "talk_head.0.")
        if name not in weights or name not in expected:
            found = f"it has {'a' if name in weights else 'no'} {theirs}"
        elif weights[name].shape != expected[name].shape or not weights[name].is_floating_point():
            shape, dtype = list(weights[name].shape), weights[name].dtype
            found = f"{theirs} is {dtype} of the shape {shape}, not floats of {list(expected[name].shape)}"
        else:
            continue
        raise ValueError(f"not a checkpoint of the authors' code: {found}")
    dtype = reduce(torch.promote_types, (value.dtype for value in weights.values()))
    return QuietStarForCausalLM.from_pretrained(None, config=ours, state_dict=weights, dtype=dtype)


def from_their_counts(n_ahead: int, n_ahead_talk: int, n_passes: int) -> dict[str, int]:
    """Convert their counts to our names: K = n_ahead - 3, A = n_ahead_talk, R = n_passes."""
    return {"thought_tokens": n_ahead - FORWARD_PASSES, "lookahead": n_ahead_talk, "rationales": n_passes}


if __name__ == "__main__":
    run(main, anywhere=True)
