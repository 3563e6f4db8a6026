"""The checkpoint format of the Quiet-STaR authors' own code, read into ours.

    python -m pipeline.authors quietstar-8-ahead models/quietstar --n-ahead 8 --n-ahead-talk 4 --n-passes 2

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
from pipeline.files import new_path
from pipeline.params import BaseModel
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

FORWARD_PASSES = 3  # their n_ahead counts the text pass, the start token and the end token beside the K sampled tokens
META_TOKENS = {"start_token_id": "<|startthought|>", "end_token_id": "<|endthought|>"}
# What their code makes of the model by its configuration, and the one variant that they train and publish. Their other
# flags (merged_talk_heads, merged_lm_and_think_heads, use_shallow_think, use_complex_think_head) are read by nothing.
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
    """Read their checkpoint, write it as a trained folder and print one line. Raises UserError for any other folder."""
    options = parse(arguments)
    counts = from_their_counts(options.n_ahead, options.n_ahead_talk, options.n_passes)
    if min(counts.values()) < 1:
        raise UserError(f"--n-ahead must be at least {FORWARD_PASSES + 1}, --n-ahead-talk and --n-passes at least 1")
    source, out = options.source, options.out.resolve()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{options.out} exists and is not empty: name a new folder, or remove that one first")
    config = read_config(source)
    _compare_thoughts(config, options.n_ahead + options.n_ahead_talk + 1)
    state = read_weights(weight_files(source))
    tokenizer = pretrained_tokenizer(BaseModel(path=str(source)))
    try:
        ids = meta_token_ids(tokenizer, len(state.get("model.embed_tokens.weight", ())))
        model = from_authors(state, config, **counts, **ids)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from error
    with new_path(out) as folder:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    print(f"{options.out}: {describe(model)}")


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """The options; counts have the names and the values of the authors' script for their published model."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.authors", description="Read a checkpoint of the Quiet-STaR authors' code."
    )
    parser.add_argument("source", type=Path, help="a folder with their checkpoint, as the hub lays it out")
    parser.add_argument("out", type=Path, help="the folder to write, which must be new or empty")
    parser.add_argument("--n-ahead", type=int, default=8, help="thought tokens K and 3 more (8)")
    parser.add_argument("--n-ahead-talk", type=int, default=4, help="true tokens A that a thought is judged by (4)")
    parser.add_argument("--n-passes", type=int, default=2, help="thoughts R at a position (2)")
    return parser.parse_args(arguments)


def describe(model: QuietStarForCausalLM) -> str:
    config = model.config
    size, dtype = sum(p.numel() for p in model.parameters()), str(model.dtype).removeprefix("torch.")
    thoughts = f"{config.thought_tokens} thought tokens, lookahead {config.lookahead}, {config.rationales} rationales"
    banned = f"never sampled: {', '.join(map(str, model.config.banned)) or 'no id'}"
    return f"{size:,} parameters in {dtype}, {thoughts}; {banned}"


def read_config(source: Path) -> dict:
    """Their config.json. Raises UserError where there is none, or it is of a model that ours is not."""
    if not source.is_dir():
        hub = f"hf download ezelikman/quietstar-8-ahead --local-dir {source}"
        raise UserError(f"{source} is not a folder: download the checkpoint first, say with `{hub}`")
    config = _read_json(source / "config.json")
    if config.get("model_type") != "mistral":
        raise UserError(f"{source} holds a {config.get('model_type')} model, but the authors' code trains mistral")
    for name, value in VARIANT.items():
        if config.get(name, value) is not value:
            told = f"{name} is {json.dumps(config[name])}, a variant that is not implemented here"
            raise UserError(f"{source}/config.json: {told} (the published checkpoint has {json.dumps(value)})")
    return config


def _compare_thoughts(config: dict, expected: int) -> None:
    """Their scripts set max_thoughts to n_ahead + n_ahead_talk + 1; nothing else in a checkpoint tells the counts."""
    if config.get("max_thoughts", expected) != expected:
        log.warning(
            "config.json has max_thoughts %s, where --n-ahead and --n-ahead-talk would make it %d: are they right?",
            config["max_thoughts"],
            expected,
        )


def weight_files(source: Path) -> list[Path]:
    """The files of weights, one or several. Raises UserError for none, one missing, or pickled ones only."""
    index = source / "model.safetensors.index.json"
    if (source / "model.safetensors").is_file():
        return [source / "model.safetensors"]
    if index.is_file():
        paths = [source / name for name in _named_in(index)]
        for path in paths:
            if not path.is_file():
                raise UserError(f"{path} is missing, but {index.name} names it: download the checkpoint again")
        return paths
    pickled = sorted(path.name for ending in ("bin", "pt", "pth") for path in source.glob(f"*.{ending}"))
    if pickled:
        told = "holds no safetensors weights but pickled ones, which can run any code when they are read"
        raise UserError(f"{source} {told} ({pickled[0]}): convert them to safetensors where you trust them")
    raise UserError(f"{source} holds no weights: neither model.safetensors nor {index.name}")


def _named_in(index: Path) -> list[str]:
    """The files of weights that an index names. Raises UserError for one that does not."""
    named = _read_json(index).get("weight_map")
    if not isinstance(named, dict) or not all(isinstance(name, str) for name in named.values()):
        raise UserError(f"{index} is broken: its weight_map names no files")
    return sorted(set(named.values()))


def read_weights(paths: list[Path]) -> dict[str, Tensor]:
    """All tensors, mapped from their files, so that none is in memory before it is used. Raises UserError."""
    state: dict[str, Tensor] = {}
    for path in paths:
        try:
            state |= load_file(path)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{path} cannot be read: {reason(error)}") from error
    return state


def _read_json(path: Path) -> dict:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} is missing or broken: {error}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is broken: it holds no JSON object")
    return values


def meta_token_ids(tokenizer: PreTrainedTokenizerBase, rows: int) -> dict[str, int | None]:
    """`QuietStarConfig`'s ids of the meta-tokens, of which the embedding table of ``rows`` may have one each.

    Their script adds them to Mistral's tokenizer and does not save it; here they are added to it in the same way,
    where the table has just the room. Raises ValueError for a tokenizer with more tokens than the table.
    """
    new = [token for token in META_TOKENS.values() if token not in tokenizer.get_vocab()]
    if len(tokenizer) + len(new) == rows:
        tokenizer.add_tokens(new, special_tokens=True)
    if len(tokenizer) > rows:
        raise ValueError(f"the model has embeddings for {rows} tokens, but its tokenizer has {len(tokenizer)}")
    return {name: tokenizer.get_vocab().get(token) for name, token in META_TOKENS.items()}


def from_authors(state: dict[str, Tensor], config: dict, **settings: object) -> QuietStarForCausalLM:
    """Our model from their state dict and the Mistral ``config`` beside it; ``settings`` are `QuietStarConfig`'s.

    It is of their dtype (of the most exact one where they are several) and takes over the tensors of ``state`` as they
    are, without a copy. Raises ValueError where the state dict is not one of theirs.
    """
    known = {*MistralConfig().to_dict(), "rope_theta"}  # transformers 5 takes the old name, and keeps it elsewhere
    try:
        base = MistralConfig(**{name: value for name, value in config.items() if name in known})
    except Exception as error:  # transformers and huggingface_hub each raise their own
        raise ValueError(f"config.json is not one of theirs: {' '.join(str(error).split())}") from error
    ours = QuietStarConfig(base=base.to_dict(), **settings)
    weights = {_our_name(name): _mean_row(name, value) for name, value in state.items()}
    _check_weights(weights, _expected(ours))
    dtype = reduce(torch.promote_types, (value.dtype for value in weights.values()))
    return QuietStarForCausalLM.from_pretrained(None, config=ours, state_dict=weights, dtype=dtype)


def _expected(config: QuietStarConfig) -> dict[str, Tensor]:
    """The weights that a model of this configuration has, without their values. Raises ValueError for none."""
    try:
        with torch.device("meta"):
            return QuietStarForCausalLM(config).state_dict()
    except Exception as error:  # whatever torch says of sizes that no tensor has
        raise ValueError(f"config.json is not one of theirs: {reason(error)}") from error


def _check_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    told = "not a checkpoint of the authors' code"
    for name in sorted({*expected, *weights}):
        if name not in weights:
            raise ValueError(f"{told}: it has no {_their_name(name)}")
        if name not in expected:
            raise ValueError(f"{told}: it has a {_their_name(name)}")
        if weights[name].shape != expected[name].shape or not weights[name].is_floating_point():
            found = f"{weights[name].dtype} of the shape {list(weights[name].shape)}"
            raise ValueError(f"{told}: {_their_name(name)} is {found}, not floats of {list(expected[name].shape)}")


def _our_name(theirs: str) -> str:
    if theirs.startswith("talk_head.0."):
        return theirs.replace("talk_head.0.", "mixing_head.")
    return theirs if theirs in ("start_embedding", "end_embedding") else f"base.{theirs}"


def _their_name(ours: str) -> str:
    return ours.removeprefix("base.").replace("mixing_head.", "talk_head.0.")


def _mean_row(name: str, value: Tensor) -> Tensor:
    """Of a meta-token's two rows the mean; the paper's setting does not use the other, a log standard deviation."""
    return value[0].clone() if name in ("start_embedding", "end_embedding") else value


def from_their_counts(n_ahead: int, n_ahead_talk: int, n_passes: int) -> dict[str, int]:
    """Our names and counts for theirs: K = n_ahead - 3, A = n_ahead_talk, R = n_passes."""
    return {"thought_tokens": n_ahead - FORWARD_PASSES, "lookahead": n_ahead_talk, "rationales": n_passes}


if __name__ == "__main__":
    run(main)
