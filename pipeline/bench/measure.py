"""One model of a given shape, with random weights, made to train and to write."""

import argparse
import statistics

import torch
from torch import Tensor
from transformers import LlamaConfig

from pipeline.bench.machine import DTYPES, clock, times
from pipeline.bench.work import useful_flops
from pipeline.thought.head import ban
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine

SEED = 0


def build(options: argparse.Namespace) -> QuietStarForCausalLM:
    """A Llama-shaped Quiet-STaR model with random weights, of which the last layer of the mixing head is not 0."""
    room = options.tokens + options.new_tokens + options.thought_tokens + options.lookahead + 2
    base = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        intermediate_size=options.ffn,
        max_position_embeddings=max(room, 2048),
        tie_word_embeddings=False,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    config = QuietStarConfig(
        base=base.to_dict(),
        thought_tokens=options.thought_tokens,
        lookahead=options.lookahead,
        rationales=options.rationales,
        meta_token_scale=1.0,
        policy_weight=1.0,
        start_token_id=options.vocab - 1,
        end_token_id=options.vocab - 2,
    )
    with torch.device(options.device):
        model = QuietStarForCausalLM._from_config(config, dtype=DTYPES[options.dtype])
    torch.nn.init.normal_(model.mixing_head[-1].weight, std=0.02)
    if options.freeze_base:
        model.base.requires_grad_(False)
    if options.checkpointing:
        model.gradient_checkpointing_enable()
    if options.compile:
        for layer in model.base.model.layers:
            layer.compile()
    return model


def measure_training(model: QuietStarForCausalLM, options: argparse.Namespace) -> dict:
    """Whole steps: forward, backward, clipping left out, AdamW."""
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    engine = Engine(options.attention, options.positions)
    ids = random_ids(options)

    def step() -> None:
        model(ids, labels=ids, sampling=Sampling(seed=SEED), engine=engine).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = statistics.median(times(step, options.repeats, options.device))
    return {
        "step_seconds": seconds,
        "tokens_per_second": options.batch * options.tokens / seconds,
        "useful_flops": useful_flops(model, options),
    }


def measure_generation(model: QuietStarForCausalLM, options: argparse.Namespace) -> dict:
    """Greedy text after prompts of ``--tokens``, a thought before each token; and the same run anew for every token."""
    model.eval()
    ids, count = random_ids(options), options.new_tokens
    found: list[Tensor] = []

    def cached() -> None:
        found[:] = [model.generate(ids, max_new_tokens=count)]

    with torch.no_grad():
        seconds = statistics.median(times(cached, options.repeats, options.device)) / count
        written, slow = recomputed(model, ids, 2, options)
    return {
        "seconds_per_token": seconds,
        "seconds_per_token_recomputed": slow,
        "equal_to_recomputed": bool((found[0][:, : written.shape[1]] == written).all()),
    }


def recomputed(
    model: QuietStarForCausalLM, ids: Tensor, count: int, options: argparse.Namespace
) -> tuple[Tensor, float]:
    """``count`` tokens, each from a pass over the whole text with a thought at every position, and its median time."""
    engine, taken = Engine(options.attention), []
    for _ in range(count):
        start = clock(options.device)
        logits = model(ids, sampling=Sampling(temperature=0.0), engine=engine).logits[:, -1]
        ids = torch.cat([ids, ban(logits, model.config.banned).argmax(-1, keepdim=True)], dim=1)
        taken.append(clock(options.device) - start)
    return ids, statistics.median(taken)


def random_ids(options: argparse.Namespace) -> Tensor:
    return torch.randint(0, options.vocab - 2, (options.batch, options.tokens), device=options.device)
