"""A plan's figures against what arithmetic, a real model and measured steps give."""

import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry
from transformers import AutoModelForCausalLM, LlamaConfig

from pipeline import params
from pipeline.errors import UserError
from pipeline.models.shape import Shape, shape_from, shape_of
from pipeline.models.trained import limit_learning, round_frozen
from pipeline.models.work import Step, pass_flops, reading_flops
from pipeline.params import Params
from pipeline.plan.__main__ import main, warnings
from pipeline.plan.estimate import estimate, trainable_parameters, training_memory
from pipeline.plan.known import KNOWN, hub_shape
from pipeline.preset import options as preset
from pipeline.thought.step import Engine
from tests.thought.tiny import GPT2, LLAMA, config_of, quiet_star, random_ids

ROOT = Path(__file__).parents[1]
PAPER = ["model=mistral-7b", "data=openwebmath", "scale=paper"]
ADAPTERS = [*PAPER, "hardware=gpu", "train.adapt=lora", "train.saved=learned", "train.positions=64"]
GIGA = 1e9
TRAIN = params.load(ROOT / "params.yaml").train


def with_thoughts(shape: Shape) -> Shape:
    return replace(shape, parameters=shape.parameters + shape.mixing_head)


def planned(*words: str) -> Params:
    return params.load(changes=preset.options(list(words)))


def test_a_presets_model_is_known_without_a_network_and_has_its_published_size():
    published = {
        "HuggingFaceTB/SmolLM2-135M-Instruct": 134_515_008,
        "Qwen/Qwen2.5-0.5B": 494_032_768,
        "Qwen/Qwen2.5-7B": 7_615_616_512,
        "mistralai/Mistral-7B-v0.1": 7_241_732_096,
    }
    names = [name for name in preset.known() if name.startswith("model=") and "tiny" not in name]
    models = [planned(name).base_model for name in names]
    assert {base.path for base in models} == published.keys() == yaml.safe_load(KNOWN.read_text()).keys()
    assert {base.path: hub_shape(base.path, base.revision).parameters for base in models} == published


MIXTURE = {"num_local_experts": 4, "num_experts": 4, "moe_intermediate_size": 8}


@pytest.mark.parametrize(
    "base, why",
    [
        ({"model_type": "mamba"}, "no attribute 'num_attention_heads'"),
        (LLAMA | MIXTURE | {"model_type": "qwen2_moe"}, "it is a mixture of experts"),
    ],
)
def test_what_cannot_be_planned(base: dict, why: str, tmp_path: Path):
    with pytest.raises(UserError, match="no configuration at"):
        hub_shape(str(tmp_path), None)
    config_of(base).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=f"a {base['model_type']} model cannot be planned: .*{why}"):
        hub_shape(str(tmp_path), None)


def test_a_decoder_that_also_sees_is_planned_with_all_that_it_has(tmp_path: Path):
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    seen = {"text_config": LLAMA | {"pad_token_id": 0}, "vision_config": sizes | {"image_size": 16, "patch_size": 8}}
    config = config_of({"model_type": "gemma3", "mm_tokens_per_image": 4, **seen})
    config.save_pretrained(tmp_path)
    found = hub_shape(str(tmp_path), None)
    assert (found.layers, found.hidden) == (2, 16)
    assert found.parameters == sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())


def test_mistral_against_arithmetic():
    found = estimate(planned(*PAPER, "hardware=node", "arms.methods=[quiet_star]"))
    weights = 32 * (2 * 4096 * 4096 + 2 * 4096 * 1024 + 3 * 4096 * 14336)
    head = 4096 * 32000
    texts, thoughts = 100 * 8 * 256, 2 * 100 * 8 * 255  # the last token has nothing to think about
    learned = weights * (texts + thoughts * (5 + 2 + 3)) + head * (texts + thoughts * (5 + 4))
    sampled = weights * thoughts * 6 + head * thoughts * 5
    assert found.tokens["text in training"] == texts and found.tokens["thoughts in training"] == 5 * thoughts
    watched = 6 * 64 / 800  # held-out texts before the first step and at 20, 40, .. 100, of the texts trained on
    expected = (6 + 2 * watched) * learned + (2 + 2 * watched) * sampled
    assert found.flops["train"] == pytest.approx(expected, rel=0.2)
    # one text a device, 256 * (1 + 2 * 10) tokens, 2.4 bytes a number: what all layers keep, four layers' own work,
    # what the mixing head reads, keys and values of text and thoughts
    tokens = 256 * 21
    parts = [
        32 * tokens * 4096 * 2.4,
        4 * tokens * (6 * 4096 + 2 * 4096 + 2 * 1024 + 4 * 14336) * 2.4,
        4 * 4096 * (256 + 512 * 4) * 4,
        2 * 1024 * 32 * (256 + 512 * 6) * 2.4,
    ]
    assert found.memory["activations"] == pytest.approx(sum(parts), rel=0.2)
    assert found.disk["models"] == pytest.approx((2 * 2 + 1) * 7.24e9 * 4, rel=0.02)
    assert found.disk["tokens"] == 2 * 4 * 256 * (10_000 + 1000)


# N, V, K, positions at a time, checkpointing: peak bytes of docs/benchmarks.md, 2 cores of an AMD EPYC, torch 2.13.0
MEASURED = [
    (256, 4096, 9, None, False, 1.23),
    (512, 4096, 9, None, False, 2.24),
    (1024, 4096, 9, None, False, 4.42),
    (256, 32000, 9, None, False, 1.38),
    (256, 32000, 9, 64, False, 0.74),
    (256, 32000, 18, None, False, 2.04),
    (256, 32000, 18, 64, False, 0.90),
    (256, 4096, 9, None, True, 0.83),
]


@pytest.mark.parametrize("tokens, vocab, thought_tokens, positions, checkpointing, peak", MEASURED)
def test_memory_against_measured_steps(
    tokens: int, vocab: int, thought_tokens: int, positions: int | None, checkpointing: bool, peak: float
):
    sizes = {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 896}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    shape = with_thoughts(shape_from(LlamaConfig(vocab_size=vocab, tie_word_embeddings=False, **sizes, **heads)))
    step = Step(texts=1, tokens=tokens, rationales=2, thought_tokens=thought_tokens, lookahead=4)
    train = replace(TRAIN, positions=positions, checkpointing=checkpointing, clip="together")
    found, whole = (training_memory(shape, step, 1, some) for some in (train, replace(train, positions=tokens)))
    assert sum(found.values()) == pytest.approx(peak * GIGA, rel=0.15)
    assert found["gradients"] == whole["gradients"] * (2 if positions else 1)  # slices keep their gradients apart


def test_devices_share_states_and_gather_weights_and_gradients():
    """The paper's model on a node, by hand: 16 bytes a parameter shared out, 2 + 2 gathered in bfloat16."""
    one, eight = (estimate(planned(*PAPER, f"hardware={name}")) for name in ("gpu", "node"))
    parameters = eight.shape.parameters
    assert eight.memory["weights"] == eight.memory["gradients"] == 4 * parameters / 8
    assert eight.memory["optimizer"] == 8 * parameters / 8 and eight.memory["gathered"] == (2 + 2) * parameters
    assert one.memory["gathered"] == 0 and one.memory["activations"] - eight.memory["activations"] == 2 * parameters
    assert eight.seconds(1e14, devices=8) == pytest.approx(eight.seconds(1e14) / 8)  # of all stages
    alone = estimate(planned(*PAPER, "hardware=node", "evaluate.launcher=single"))
    shared = sum(alone.flops.values()) - alone.flops["evaluate"]
    assert alone.seconds(1e14, devices=8) == pytest.approx((alone.flops["evaluate"] + shared / 8) / 1e14)
    adapters = estimate(planned(*PAPER, "hardware=node", "train.adapt=lora"))
    assert adapters.memory["gathered"] == 2 * (parameters + adapters.learned)


TIED = LLAMA | {"tie_word_embeddings": True}


@pytest.mark.parametrize(
    "adapt, base",
    [("whole", LLAMA), ("whole", GPT2), ("lora", LLAMA), ("lora", TIED), ("lora", GPT2), ("frozen", TIED)],
    ids=["whole-llama", "whole-gpt2", "lora-llama", "lora-tied", "lora-gpt2", "frozen-tied"],
)
def test_what_learns_and_what_is_in_bfloat16_are_counted_as_in_training(adapt: str, base: dict):
    train, model = replace(TRAIN, adapt=adapt), quiet_star(base)
    shape = with_thoughts(shape_of(model.base))
    limit_learning(model, train)
    if base is GPT2:  # whose matrices are no linear layers of torch's
        assert shape.body == 2 * 16 * (3 * 16 + 16 + 2 * 64) and shape.ffn == 64
    assert trainable_parameters(shape, train) == sum(p.numel() for p in model.parameters() if p.requires_grad)
    if adapt != "whole":
        round_frozen(model)
        kept = sum(p.nbytes for name, p in model.named_parameters() if "lora_" not in name)
        step = Step(texts=1, tokens=16, rationales=2, thought_tokens=3, lookahead=2)
        assert training_memory(shape, step, 1, replace(train, precision="bfloat16"))["weights"] == kept


def test_what_does_not_learn_has_no_gradient_and_no_moments():
    """The paper's model with adapters on one GPU, where gradients are kept twice: of a slice, and of all before it."""
    found = estimate(planned(*ADAPTERS))
    learned = found.learned
    assert (found.memory["gradients"], found.memory["optimizer"]) == (2 * 4 * learned, 2 * 4 * learned)
    in_float32 = estimate(planned(*ADAPTERS, "train.precision=float32")).memory
    assert in_float32["weights"] == 4 * found.shape.parameters == pytest.approx(7.29e9 * 4, rel=0.01)
    assert found.disk["models"] == 2 * 4 * (2 * found.shape.parameters + 4 * learned)
    in_8_bits = estimate(planned(*ADAPTERS, "train.optimizer=adamw_8bit")).memory
    assert (in_8_bits["gradients"], in_8_bits["optimizer"]) == (2 * 4 * learned, 2 * learned)


class Count(TorchDispatchMode):
    """Operations of matrix products, as torch's FlopCounterMode counts them; its module hooks fail on our engine."""

    flops = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        count = flop_registry.get(function.overloadpacket)
        self.flops += count(*args, **(kwargs or {}), out_val=out) if count else 0
        return out


@pytest.mark.parametrize(
    "adapt, thought_tokens, lookahead, tokens",
    [("whole", 9, 4, 16), ("whole", 3, 2, 32), ("lora", 3, 2, 32), ("frozen", 9, 4, 16)],
)
def test_operations_against_those_of_a_step(adapt: str, thought_tokens: int, lookahead: int, tokens: int):
    """Within 6 %: the mixing head's operations, and attention to what a mask hides, are not planned."""
    sizes = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 3, "head_dim": 16}
    model = quiet_star(LLAMA | sizes, thought_tokens=thought_tokens, lookahead=lookahead)
    shape, ids = shape_of(model.base), random_ids(2, tokens)
    limit_learning(model, replace(TRAIN, adapt=adapt))
    with Count() as counted:
        model(ids, labels=ids, engine=Engine("blocked")).loss.backward()
    step = Step(2, tokens, model.config.rationales, thought_tokens, lookahead)
    rank = {"whole": None, "lora": TRAIN.lora.rank, "frozen": 0}[adapt]
    assert pass_flops(shape, step, rank) == pytest.approx(counted.flops, rel=0.06)


def warned(*words: str) -> str:
    some = planned(*words)
    return "\n".join(warnings(estimate(some), some))


def test_what_fits_is_not_warned_of():
    assert warned("plan.disk=10") == ""
    small = [*PAPER, "hardware=gpu", "plan.disk=1000", "plan.device_memory=24", "train.adapt=lora"]
    assert warned(*small) == ""
    exact = ["evaluate.precision=float32", "evaluate.device=cpu"]
    assert warned(*small, *exact).startswith("training is in bfloat16, evaluate in float32, which runs slower")


@pytest.mark.parametrize(
    "words, warning",
    [
        ([*PAPER, "hardware=node", "train.precision=float32"], "training takes 85.6"),
        ([*PAPER, "hardware=gpu"], "116.7 GB; take a smaller model or more devices, or set train.adapt to lora"),
        ([*ADAPTERS, "plan.device_memory=16"], "alone are 16.4 GB; take a smaller model or more devices\n"),
        ([*ADAPTERS, "plan.device_memory=20", "train.precision=float32"], "; set train.precision to bfloat16, or"),
        (["plan.device_memory=0.3"], "lower train.batch_size and raise train.accumulation"),
        (["plan.device_memory=0.06", "train.batch_size=1"], "set train.checkpointing"),
        (
            ["plan.device_memory=0.03", "train.batch_size=1", "train.checkpointing=true"],
            "set train.positions below 48 and train.clip to together",
        ),
        (["plan.disk=0.01"], "go to the disk"),
        (
            [*PAPER, "hardware=gpu", "plan.device_memory=24", "evaluate.precision=float32"],
            "evaluate holds 29.2 GB of weights, in float32, where plan.device_memory is 24 GB: set evaluate.prec",
        ),
        ([*PAPER, "hardware=gpu", "plan.device_memory=14"], "perplexity holds 14.9 GB of weights, in bfloat16, where"),
        (["plan.devices=8", "train.accumulation=8"], "train.launcher is single"),
        (["plan.devices=8", "train.accumulation=12"], "cannot be shared out over 8 devices"),
        ([*PAPER, "hardware=node", "train.optimizer=adamw_8bit"], "train.optimizer is adamw_8bit, which is refused"),
        ([*PAPER, "hardware=node", "train.positions=64"], "train.positions is 64, which is refused"),
        ([*PAPER, "hardware=node", "train.clip=apart"], "train.clip is apart, which is refused"),
        ([*PAPER, "hardware=node", "train.ema=0.999"], "train.ema is 0.999, which is refused"),
    ],
)
def test_what_does_not_fit_is(words: list[str], warning: str):
    assert warning in warned(*words)


def test_the_launcher_alone_as_documented_is_not_refused():
    """On 2, 4 and 8 devices, with as many texts a step as params.yaml has."""
    (line,) = re.findall(r"^dvc exp run (-S train\.launcher=.*)$", (ROOT / "docs/running.md").read_text(), re.M)
    words = line.replace("-S ", "").split()
    for devices in (2, 4, 8):
        assert warned(*words, f"plan.devices={devices}", "plan.disk=10") == ""
    train = planned(*words).train
    assert train.batch_size * train.accumulation == TRAIN.batch_size * TRAIN.accumulation


def test_the_documented_memory_of_devices_is_the_plans():
    page = (ROOT / "docs/running.md").read_text()
    for devices, name in ((1, "gpu"), (8, "node"), (32, "nodes")):
        whole, lora = (
            estimate(planned(*PAPER, f"hardware={name}", f"train.adapt={a}")).memory for a in ("whole", "lora")
        )
        parts = ("weights", "gradients", "optimizer"), ("gathered",), ("activations", "head"), tuple(whole)
        sizes = [sum(whole[kind] for kind in part) for part in parts] + [sum(lora.values())]
        row = re.search(rf"^\| {devices} \|(( [\d.]+( \(.*\))? \|){{5}})$", page, re.M)[1]
        assert re.findall(r"([\d.]+)(?: \(.*?\))? \|", row) == [f"{size / GIGA:.1f}" for size in sizes]


ARM = "arms.methods=[quiet_star]"


def test_operations_of_arms():
    def cost(stage: str, *methods: str, seeds: str = "1") -> float:
        return estimate(planned(f"arms.methods=[{','.join(methods)}]", f"arms.seeds=[{seeds}]")).flops[stage]

    whole, pauses, plain, untrained = (cost("train", m) for m in ("quiet_star", "pause", "no_thought", "untrained"))
    assert whole == cost("train", "no_policy") > pauses > 5 * plain > 0 and whole > 20 * untrained > 0
    assert cost("train", "pause_same_compute") == pytest.approx(whole, rel=0.1) and pauses < 0.3 * whole
    shape, step = shape_of(quiet_star(LLAMA).base), Step(2, tokens=64, rationales=0, thought_tokens=3, lookahead=2)
    assert pass_flops(shape, step) == pytest.approx(3 * reading_flops(shape, 2 * 64, 64))  # backward is twice forward
    for stage in ("train", "evaluate", "perplexity"):  # arms add up, and each has each seed
        apart = cost(stage, "quiet_star") + cost(stage, "untrained") + cost(stage, "before")
        assert cost(stage, "quiet_star", "untrained", "before", seeds="1,2,3") == pytest.approx(3 * apart)
    # prompts of 48 tokens, thoughts of 5 before 4 tokens of an answer: in 5 ways; also a sample and the mean of 16
    thinking = 4 * (5 + 2)
    both = cost("evaluate", "untrained") / cost("evaluate", "quiet_star")
    assert both == pytest.approx((7 * 48 + 21 * thinking) / (5 * 48 + 4 * thinking))
    assert cost("evaluate", "quiet_star") > 6 * cost("evaluate", "before")


def test_an_arm_without_thoughts_reasons_in_one_way():
    cot = {m: estimate(planned(f"arms.methods=[{m}]")).flops["chain_of_thought"] for m in ("no_thought", "quiet_star")}
    length, written = 48 + 48, 48 + 12
    assert cot["quiet_star"] / cot["no_thought"] == pytest.approx(2 + written * 7 / (2 * length + written))


def test_inner_epochs_sample_once_and_arms_without_thoughts_not_at_all():
    rlp = ["arms.methods=[rlp]", "train.steps=101"]
    once, twice = (estimate(planned(*rlp, f"train.rlp.epochs={epochs}")) for epochs in (1, 2))
    name, a_step = "thoughts in training", 8 * 47 * 4 * 5
    assert (once.tokens[name], twice.tokens[name]) == (101 * a_step, 51 * a_step)
    saved = reading_flops(once.shape, 50 * a_step, 48)
    assert once.flops["train"] - twice.flops["train"] == pytest.approx(saved)
    assert estimate(planned(ARM, "train.rlp.epochs=2")).flops == estimate(planned(ARM)).flops
    assert estimate(planned("arms.methods=[pause,no_thought,untrained,before]")).tokens[name] == 0


def test_stages_add_up_and_the_largest_must_fit():
    """Of 40 and 110 steps: text and thoughts are those of two runs, and so are operations but for one evaluation."""
    sizes = ({"thought_tokens": 9, "lookahead": 4, "steps": 40}, {"thought_tokens": 3, "lookahead": 2, "steps": 110})
    alone = [estimate(planned(ARM, *(f"train.{name}={value}" for name, value in size.items()))) for size in sizes]
    stages = ",".join(str(size | {"learning_rate": 1e-3}).replace("'", "").replace(" ", "") for size in sizes)
    both = estimate(planned(ARM, f"train.stages=[{stages}]"))
    for name in ("text in training", "thoughts in training"):
        assert both.tokens[name] == sum(one.tokens[name] for one in alone)
    apart = sum(one.flops["train"] for one in alone)
    assert 0.9 * apart < both.flops["train"] < apart
    assert both.memory == alone[0].memory and both.flops["evaluate"] == alone[1].flops["evaluate"]


def test_as_a_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    monkeypatch.setattr(sys, "argv", ["plan", *PAPER, "hardware=node", "plan.disk=0.1"])
    main()
    shown = capsys.readouterr().out
    assert re.match(r"parameters +7,292,084,224\n", shown) and "\nwarning: " in shown
    for word in ("tokens of text", "operations, train", "memory a device", "time at", "time on 8", "disk, models"):
        assert word in shown
    monkeypatch.setattr(sys, "argv", ["plan", "--help"])
    main()
    assert "mistral-7b" in capsys.readouterr().out


def test_every_corpus_has_a_size():
    for name in [name for name in preset.known() if name.startswith("data=")]:
        disk = estimate(planned(name)).disk
        assert disk["corpus"] > 1e5 and disk["tokens"] > 1e4, name
