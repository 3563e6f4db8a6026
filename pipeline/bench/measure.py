"""What one benchmark measures: a model with random weights that trains or writes, and the device's matrix products."""

import argparse
import platform
import re
import resource
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedModel

from pipeline.errors import UserError, reason
from pipeline.models.shape import shape_of
from pipeline.models.work import Step, pass_flops, peak_of, products
from pipeline.thought.generation import continue_texts
from pipeline.thought.head import ban
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from pipeline.thought.objective import lookahead_targets
from pipeline.thought.places import likeliest, thinking
from pipeline.thought.quiet_star import SIGNED
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine

SEED = 0
CPUINFO = Path("/proc/cpuinfo")  # of Linux
MIXING_WEIGHTS = (0.001, 0.01, 0.1)


def build(options: argparse.Namespace) -> QuietStarForCausalLM:
    """A Llama-shaped Quiet-STaR model with random weights. The mixing head's last layer is not 0, as it is at first."""
    base = LlamaConfig(
        vocab_size=options.vocab,
        hidden_size=options.hidden,
        num_hidden_layers=options.layers,
        num_attention_heads=options.heads,
        num_key_value_heads=options.kv_heads,
        intermediate_size=options.ffn,
        max_position_embeddings=options.tokens + options.new_tokens + options.thought_tokens + options.lookahead + 2,
        tie_word_embeddings=False,
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
        gate=options.choose == "gate",
    )
    with torch.device(options.device):
        # precision compares autocast with float32 weights
        dtype = "float32" if options.what == "precision" else options.dtype
        model = QuietStarForCausalLM._from_config(config, dtype=getattr(torch, dtype))
    torch.nn.init.normal_(model.mixing_head[-1].weight, std=0.02)
    if options.freeze_base:
        model.base.requires_grad_(False)
    if options.checkpointing:
        recompute_activations(model)
    if options.compile:
        for layer in model.base.model.layers:
            layer.compile()
    return model


def recompute_activations(model: PreTrainedModel) -> None:
    """Keep no activations for the backward pass, by the name that this transformers has for it: 5.23 changed it."""
    enable = "activation_checkpointing_enable"
    getattr(model, enable if hasattr(model, enable) else "gradient_checkpointing_enable")()


def read(options: argparse.Namespace) -> tuple[QuietStarForCausalLM, Tensor]:
    """A model on the base in the folder ``options.model``, and the first tokens of the text file ``options.text``.

    The sizes in ``options`` become the model's. Raises UserError if there is no model and tokenizer, or the text is too
    short.
    """
    if not Path(options.model).is_dir():  # `pipeline.files` checks that too, but needs pandas and pyarrow
        raise UserError(f"there is no model at {options.model}: the folder does not exist")
    try:
        base = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(options.model, local_files_only=True)
    except Exception as error:  # transformers, tokenizers and safetensors each raise their own
        raise UserError(f"the model in {options.model} cannot be read: {reason(error)}") from error
    ids = tokenizer(Path(options.text).read_text(encoding="utf-8"))["input_ids"][: options.batch * options.tokens]
    if len(ids) < options.batch * options.tokens:
        raise UserError(f"{options.text} has {len(ids)} tokens, fewer than --batch times --tokens")
    meta = tokenizer("---", add_special_tokens=False)["input_ids"]
    sizes = {"thought_tokens": options.thought_tokens, "lookahead": options.lookahead, "rationales": options.rationales}
    model = QuietStarForCausalLM.from_base(base, meta, meta_token_scale=1.0, policy_weight=1.0, **sizes)
    shape, config = shape_of(model.base), base.config.get_text_config()
    options.hidden, options.layers, options.ffn, options.vocab = shape.hidden, shape.layers, shape.ffn, shape.vocab
    options.heads = config.num_attention_heads
    options.kv_heads = getattr(config, "num_key_value_heads", None) or options.heads
    return model.to(options.device), torch.tensor(ids, device=options.device).view(options.batch, -1)


def measure_training(model: QuietStarForCausalLM, ids: Tensor, options: argparse.Namespace) -> dict:
    """Time whole training steps: forward, backward and AdamW, without gradient clipping."""
    model.train()
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    engine = Engine(options.attention, options.positions)

    def chosen() -> Tensor | None:
        if options.share == 1:
            return None
        if options.choose == "entropy":
            scores = model.entropies(ids)
        elif options.choose == "gate":
            scores = model.gate_scores(ids)
        else:
            scores = torch.rand(ids.shape, device=ids.device)
        wanted = thinking(lookahead_targets(ids, options.lookahead), None)
        count = round(options.share * ids.shape[1])
        return likeliest(scores, wanted, torch.full((len(ids),), count, device=ids.device))

    def train_step() -> None:
        sampling = Sampling(seed=SEED)
        model(ids, labels=ids, sampling=sampling, engine=engine, thinks=chosen()).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    seconds = statistics.median(times(train_step, options.repeats, options.device))
    return {
        "step_seconds": seconds,
        "tokens_per_second": options.batch * options.tokens / seconds,
        "useful_flops": pass_flops(shape_of(model.base), step_of(options)),
    }


def measure_generation(model: QuietStarForCausalLM, ids: Tensor, options: argparse.Namespace) -> dict:
    """Time greedy generation with a thought before each token, with the cache and recomputed from scratch."""
    model.eval()
    written, recomputed = ids, ids

    def generate() -> None:
        nonlocal written
        written = continue_texts(model.thinker, ids, max_new_tokens=options.new_tokens)

    def recompute_token() -> None:
        """One more token, from a pass over the whole text with a thought at every position."""
        nonlocal recomputed
        output = model(recomputed, sampling=Sampling(temperature=0.0), engine=Engine(options.attention))
        token = ban(output.logits[:, -1], model.config.banned).argmax(-1, keepdim=True)
        recomputed = torch.cat([recomputed, token], dim=1)

    with torch.no_grad():
        seconds = statistics.median(times(generate, options.repeats, options.device)) / options.new_tokens
        [slow] = times(recompute_token, 1, options.device)
    common = min(written.shape[1], recomputed.shape[1])
    return {
        "seconds_per_token": seconds,
        "seconds_per_token_recomputed": slow,
        "equal_to_recomputed": torch.equal(written[:, :common], recomputed[:, :common]),
    }


def measure_precision(model: QuietStarForCausalLM, ids: Tensor, options: argparse.Namespace) -> dict:
    """Correlate the advantages of one set of thoughts under bfloat16 autocast with those in float32, by mixing weight.

    ``unresolved``: the share of rewards in bfloat16 that rounding may have made. A weight is the same for all states.
    """
    model.config.advantage = SIGNED
    found: dict[str, dict[str, float]] = {"advantage_correlation": {}, "unresolved": {}}
    with torch.no_grad():
        for weight in MIXING_WEIGHTS:
            model.mixing_head.start_at(weight)
            model.mixing_head[0].bias.zero_()
            exact = model(ids, labels=ids, sampling=Sampling(seed=SEED))
            with torch.autocast(options.device, getattr(torch, options.dtype), enabled=options.dtype != "float32"):
                losses = model(ids, labels=ids, thought_ids=exact.thoughts.ids).losses
            both = torch.stack([exact.losses.advantage, losses.advantage]).double().flatten(1)
            found["advantage_correlation"][str(weight)] = torch.corrcoef(both)[0, 1].item()
            found["unresolved"][str(weight)] = (losses.reward.abs() <= losses.rounding).double().mean().item()
    return found


def gemm_rates(model: QuietStarForCausalLM, options: argparse.Namespace, measured: dict) -> dict:
    """Operations a second of a 2048-cube and, for training, of the step's matrix products, each run alone."""
    cube = 2 * 2048**3 / _product_seconds((2048, 2048, 2048), options)
    if options.what == "generate":
        return {"gemm_2048_flops_per_second": cube}
    counts: Counter[tuple[int, int, int]] = Counter()
    for rows, inputs, outputs, forward, backward in products(shape_of(model.base), step_of(options)):
        counts[rows, inputs, outputs] += forward
        counts[rows, outputs, inputs] += backward  # the gradient of the rows
        counts[inputs, rows, outputs] += backward  # the gradient of the weight
    counts = +counts
    work = sum(2 * m * k * n * count for (m, k, n), count in counts.items())
    rate = work / sum(_product_seconds(shape, options) * count for shape, count in counts.items())
    achieved = measured["useful_flops"] / measured["step_seconds"]
    found = {"gemm_flops_per_second": rate, "gemm_fraction": achieved / rate, "gemm_2048_flops_per_second": cube}
    if options.device == "cuda" and (peak := peak_of(torch.cuda.get_device_name())) is not None:
        found["mfu"] = achieved / peak
    return found


def _product_seconds(shape: tuple[int, int, int], options: argparse.Namespace) -> float:
    """The fastest of several (m, k) times (k, n) products."""
    m, k, n = shape
    place = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    left, right, out = torch.randn(m, k, **place), torch.randn(k, n, **place), torch.empty(m, n, **place)
    return min(times(lambda: torch.mm(left, right, out=out), 7, options.device))


def step_of(options: argparse.Namespace) -> Step:
    sizes = (options.tokens, options.rationales, options.thought_tokens, options.lookahead)
    return Step(options.batch, *sizes, options.share)


def times(call: Callable[[], None], repeats: int, device: str) -> list[float]:
    """Seconds of each of ``repeats`` calls, after a warm-up call."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    taken = []
    for _ in range(1 + repeats):
        wait()
        start = time.perf_counter()
        call()
        wait()
        taken.append(time.perf_counter() - start)
    return taken[1:]


def peak_memory(device: str) -> int:
    """Bytes at most in use so far: on a CPU by the whole process, on a GPU by what was allocated."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def machine(device: str) -> dict:
    """What the benchmark ran on."""
    name = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    if device == "cpu" and CPUINFO.exists() and (model := re.search(r"model name\s*: (.*)", CPUINFO.read_text())):
        name = model[1]
    return {
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }
