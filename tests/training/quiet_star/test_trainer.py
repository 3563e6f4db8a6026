"""Quiet-STaR training on a tiny model: what it optimises, logs, refuses and writes."""

import contextlib
import hashlib
import json
import math
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.distributed import DistError
from torch.distributed.checkpoint.api import CheckpointException
from transformers import AutoModelForCausalLM, Trainer

from pipeline import files, params
from pipeline.data.corpus.build import PROBE
from pipeline.data.spans import SPANS, Spans
from pipeline.data.tokens.tokenizer import pretrained_tokenizer
from pipeline.errors import UserError
from pipeline.files import write_rows
from pipeline.models.trained import base_of, load_trained
from pipeline.preset import options as preset
from pipeline.resume import fingerprint
from pipeline.thought.methods import NO_THOUGHT, PAUSE, PAUSE_SAME_COMPUTE, QUIET_STAR
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.thought.objective import counts_of
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine
from pipeline.training.checkpoints import Checkpoints
from pipeline.training.pretrain import write_base_model
from pipeline.training.quiet_star.schedule import settings_of
from pipeline.training.quiet_star.train import trainer_settings, write_trained
from pipeline.training.quiet_star.trainer import (
    LOSS_COLUMNS,
    LOSSES,
    STEP_COLUMNS,
    QuietStarTrainer,
    has_policy,
    parameter_groups,
)
from pipeline.training.quiet_star.where import Where
from pipeline.training.trainer import logged, training_arguments
from pipeline.training.warnings import WINDOW
from tests.bad_input import spoil
from tests.local_hub import model_folder
from tests.thought.tiny import ALL_METHODS, LLAMA, METHODS, VOCABULARY, quiet_star, random_ids
from tests.training.test_checkpoints import find_8_bits, needs_8_bits

SHIPPED = Path(__file__).parents[3] / "params.yaml"
TRAIN = replace(
    params.load(SHIPPED).train,
    steps=2,
    batch_size=4,
    accumulation=1,
    learning_rate=0.01,
    mixing_head_learning_rate=0.02,
    weight_decay=0.1,
    warmup_steps=0,
    gradient_clip=1.0,
    clip="together",
    log_steps=1,
    evaluation_steps=1,
    policy_weight=5.0,
    device="cpu",
)
Run = tuple[QuietStarForCausalLM, list[dict]]


def decoder_tokens(method: str, thinks: Tensor | None = None, **sizes: int) -> int:
    """Tokens that pass through the decoder in a training step, counted in its first layer; backward counts twice."""
    model, passed = quiet_star(LLAMA, method=method, **sizes), []
    layer = model.base.model.layers[0].mlp
    layer.register_forward_hook(
        lambda _, given, __: passed.append(given[0].shape[:-1].numel() * (3 if torch.is_grad_enabled() else 1))
    )
    ids = random_ids(2, 12)
    model(ids, labels=ids, thinks=thinks)
    return sum(passed)


@pytest.mark.parametrize("tokens, lookahead, rationales", [(5, 2, 4), (3, 1, 2), (1, 4, 2)])
def test_pauses_of_the_same_compute_put_as_many_tokens_through_the_decoder(
    tokens: int, lookahead: int, rationales: int
):
    sizes = {"thought_tokens": tokens, "lookahead": lookahead, "rationales": rationales}
    settings = replace(TRAIN, steps=1000, **sizes)
    steps = {method: settings_of(settings, method).steps for method in (QUIET_STAR, PAUSE, PAUSE_SAME_COMPUTE)}
    assert steps[PAUSE] == steps[QUIET_STAR] == 1000
    whole = 1000 * decoder_tokens(QUIET_STAR, **sizes)
    assert steps[PAUSE_SAME_COMPUTE] * decoder_tokens(PAUSE_SAME_COMPUTE, **sizes) == pytest.approx(whole, rel=0.01)
    assert 1000 * decoder_tokens(PAUSE, **sizes) < 0.6 * whole
    assert replace(settings_of(settings, PAUSE_SAME_COMPUTE), steps=1000) == settings  # all else is the same
    quarter = replace(settings, thinking=params.Thinking("random", 0.25, "A:"))
    thinks = torch.arange(12).expand(2, 12) % 4 == 0  # a quarter of the positions
    whole = 1000 * decoder_tokens(QUIET_STAR, thinks, **sizes)
    steps = settings_of(quarter, PAUSE_SAME_COMPUTE).steps
    assert steps * decoder_tokens(PAUSE_SAME_COMPUTE, thinks, **sizes) == pytest.approx(whole, rel=0.01)


def some_spans(path: Path, last: int = 10) -> Spans:
    """Eight spans of ten tokens, the last one padded behind its ``last`` tokens."""
    ids = random_ids(8, 10, seed=0).tolist()
    write_rows(path, [{"input_ids": row, "length": 10 if i < 7 else last} for i, row in enumerate(ids)], SPANS)
    return Spans(path, VOCABULARY)


@pytest.fixture(scope="module")
def spans(tmp_path_factory: pytest.TempPathFactory) -> Spans:
    return some_spans(tmp_path_factory.mktemp("spans") / "spans.arrow", last=6)


def trainer(
    model: QuietStarForCausalLM,
    spans: Spans,
    settings: params.Train = TRAIN,
    seed: int = 1,
    where: Where | None = None,
) -> QuietStarTrainer:
    folder = Path("checkpoints")
    arguments = training_arguments("cpu", seed, folder, eval_on_start=True, **trainer_settings(settings))
    data = {"train_dataset": spans, "eval_dataset": spans}
    return QuietStarTrainer(settings, None, where, arguments, folder=folder, model=model, **data)


def trained(spans: Spans, settings: params.Train = TRAIN, method: str = QUIET_STAR) -> Run:
    model = quiet_star(LLAMA, policy_weight=settings.policy_weight, method=method)
    return model, trainer(model, spans, settings).run()


@pytest.fixture(scope="module")
def plain(spans: Spans, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    with contextlib.chdir(tmp_path_factory.mktemp("plain")):
        return {method: trained(spans, method=method) for method in METHODS}


def weights(model: QuietStarForCausalLM) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def run_until(step: int, make: Callable[[], QuietStarTrainer], monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a trainer that checkpoints after every step, and interrupt it once ``step`` steps are finished."""
    for name in ("LEAST_SECONDS", "LEAST_SHARE"):
        monkeypatch.setattr(f"pipeline.training.checkpoints.{name}", 0)
    one = make()
    compute = one.compute_loss

    def interrupt(*args: object, **options: object) -> torch.Tensor:
        if one.state.global_step == step:
            raise KeyboardInterrupt
        return compute(*args, **options)

    one.compute_loss = interrupt
    with pytest.raises(KeyboardInterrupt):
        one.run()


def column(log: list[dict], name: str) -> list[float]:
    return logged(log, [name], needed="base_loss")[name].tolist()


def losses_fall(log: list[dict]) -> None:
    losses = logged(log, LOSS_COLUMNS, needed="base_loss")[["base_loss", "talk_loss"]]
    assert (losses.iloc[-5:].mean() < 0.8 * losses.iloc[:5].mean()).all()


NOT_LOGGED = {
    QUIET_STAR: [],
    PAUSE: ["policy_loss", "positive_advantages", "thought_entropy"],
    NO_THOUGHT: [
        "policy_loss",
        "reward",
        "unresolved_rewards",
        "positive_advantages",
        "mixing_weight",
        "thought_entropy",
    ],
}


@ALL_METHODS
def test_a_method_logs_what_it_has_at_every_step(method: str, plain: dict[str, Run]):
    """Every other column is blank at every step, and the parts that are there make up the loss."""
    _, log = plain[method]
    steps = logged(log, STEP_COLUMNS, needed="base_loss")
    blank = steps.isna()
    assert list(steps.columns) == ["step", *STEP_COLUMNS] and list(steps["step"]) == [1, 2]
    assert list(steps.columns[blank.any()]) == NOT_LOGGED[method] and (blank.all() == blank.any()).all()
    policy = TRAIN.policy_weight * steps["policy_loss"].fillna(0)
    total = 0.5 * steps["base_loss"] + 0.5 * steps["talk_loss"] + policy
    assert steps["loss"].to_numpy() == pytest.approx(total.to_numpy(), rel=1e-3)
    assert min(column(log, "steps_per_second")) > 0
    if method == NO_THOUGHT:
        assert steps["talk_loss"].equals(steps["base_loss"])
    if method == QUIET_STAR:
        assert steps["positive_advantages"].between(0, 1).all() and (steps["thought_entropy"] > 0).all()
    watched = logged(log, ["eval_base_loss", "eval_talk_loss"], needed="eval_base_loss")
    assert list(watched["step"]) == [0, 1, 2] and watched.notna().all().all()


@ALL_METHODS
def test_training_changes_every_part_of_the_model_and_the_loss_falls(method: str, spans: Spans, plain: dict[str, Run]):
    before, after = quiet_star(LLAMA, method=method), plain[method][0]
    still = [n for (n, a), b in zip(before.named_parameters(), after.parameters(), strict=True) if torch.equal(a, b)]
    assert still == []
    _, log = trained(spans, replace(TRAIN, steps=30, evaluation_steps=30, policy_weight=0.0), method)
    losses_fall(log)


def test_one_bar_is_all_that_training_prints(spans: Spans, capsys: pytest.CaptureFixture):
    trained(spans)
    printed = capsys.readouterr()
    lines = printed.err.replace("\r", "\n").split("\n")
    assert printed.out == "" and {line.split(":")[0] for line in lines if line.strip()} == {"training"}
    assert "2/2" in lines[-2] and "loss=" in lines[-2]


def seen(spans: Spans, settings: params.Train, method: str, seed: int = 1) -> list[dict[str, torch.Tensor]]:
    """The micro-batches of a run, each with its step."""
    one = trainer(quiet_star(LLAMA, method=method), spans, settings, seed)
    batches, compute = [], one.compute_loss

    def spy(model: torch.nn.Module, inputs: dict, *args: object, **options: object):
        batches.append({**inputs, "step": torch.tensor(one.state.global_step)})
        return compute(model, inputs, *args, **options)

    one.compute_loss = spy
    one.run()
    return batches


def test_all_methods_see_the_same_texts_in_the_same_order(spans: Spans):
    """Over three epochs, whatever each draws on the way."""
    settings = replace(TRAIN, steps=6, batch_size=2, accumulation=2, evaluation_steps=6)
    first, *others = [seen(spans, settings, method) for method in METHODS]
    assert [each["step"] for each in first] == [step for step in range(6) for _ in range(2)]
    epochs = torch.cat([each["text_keys"] for each in first]).view(3, 8)
    assert torch.equal(epochs.sort().values, torch.arange(8).expand(3, 8)) and len(epochs.unique(dim=0)) == 3
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert one.keys() == two.keys() and all(torch.equal(value, two[name]) for name, value in one.items())
    other_seed = torch.cat([each["text_keys"] for each in seen(spans, settings, NO_THOUGHT, seed=2)]).view(3, 8)
    assert len(torch.cat([epochs, other_seed]).unique(dim=0)) == 6  # no epoch of one seed is an epoch of the other


def test_continued_pretraining_is_plain_adamw_on_the_base_models_own_loss(spans: Spans):
    """Two steps, by hand, on transformers' own model; of all texts, so their order does not matter."""
    settings = replace(TRAIN, batch_size=8)
    start = quiet_star(LLAMA, method=NO_THOUGHT)
    plain = AutoModelForCausalLM.from_config(start.base.config, attn_implementation="eager")
    plain.load_state_dict(start.base.state_dict())
    matrices, vectors = ([p for p in plain.parameters() if (p.ndim > 1) == matrix] for matrix in (True, False))
    optimizer = torch.optim.AdamW(
        [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}], 0.01, weight_decay=0.1
    )
    batch = {
        name: torch.stack([spans[i][name] for i in range(8)]) for name in ("input_ids", "attention_mask", "labels")
    }
    for _ in range(2):
        optimizer.zero_grad()
        plain(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
    found = trained(spans, settings, NO_THOUGHT)[0].base
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(found.get_parameter(name), parameter, atol=2e-4, rtol=1e-3, msg=name)


def test_thoughts_are_drawn_anew_at_every_step_and_seed(spans: Spans):
    inputs = {name: torch.stack([spans[i][name] for i in (2, 5)]) for name in spans[0]}
    drawn = []
    for seed, step in ((1, 0), (1, 0), (1, 1), (2, 0)):
        one = trainer(quiet_star(LLAMA), spans, seed=seed)
        one.state.global_step = step
        counts = counts_of(inputs["labels"], one.model.lookahead)
        drawn.append(one.compute_loss(one.model, inputs, True, counts)[1].thoughts.ids)
    first, again, *others = drawn
    assert torch.equal(first, again) and not any(torch.equal(first, other) for other in others)


def test_micro_batches_of_half_a_batch_are_one_of_a_whole(spans: Spans):
    """Means are over all of a step's tokens, though one half has padding; draws do not depend on the batch."""
    _, log = trained(spans, replace(TRAIN, steps=1, batch_size=8))
    for parts in (2, 8):
        _, other = trained(spans, replace(TRAIN, steps=1, batch_size=8 // parts, accumulation=parts))
        for name in [*LOSS_COLUMNS, "thought_entropy", "grad_norm"]:
            assert column(other, name) == pytest.approx(column(log, name), rel=1e-5, abs=1e-8), name


def test_rows_of_several_steps_are_their_means(spans: Spans, plain: dict[str, Run]):
    _, log = trained(spans, replace(TRAIN, log_steps=2))
    for name in ["loss", *LOSS_COLUMNS, "thought_entropy"]:
        assert column(log, name) == pytest.approx([sum(column(plain[QUIET_STAR][1], name)) / 2], rel=1e-5), name


def test_of_steps_in_which_nothing_thinks_there_is_nothing_to_log(spans: Spans, monkeypatch: pytest.MonkeyPatch):
    """Their columns are blank, and a row of several steps has the means over those that think."""
    where = Where(params.Thinking("one", 0.25, "A:"), None)
    asked = []

    def thinks(self: Where, model: object, batch: dict[str, Tensor], seed: int) -> Tensor:
        asked.append(seed)
        found = torch.zeros_like(batch["input_ids"], dtype=torch.bool)
        found[:, 1] = len(asked) % 2 == 1  # at every other step
        return found

    monkeypatch.setattr(Where, "thinks", thinks)
    logs = {}
    for every in (1, 2):
        asked.clear()
        settings = replace(TRAIN, steps=2, log_steps=every)
        logs[every] = trainer(quiet_star(LLAMA), spans, settings, where=where).run()
    steps = [row for row in logs[1] if "base_loss" in row]
    blank = {*LOSS_COLUMNS, "thought_entropy"} - {"base_loss"}
    assert blank <= steps[0].keys() and not blank & steps[1].keys()
    (both,) = (row for row in logs[2] if "base_loss" in row)
    for name in blank:
        assert both[name] == pytest.approx(steps[0][name], rel=1e-5), name
    assert both["base_loss"] == pytest.approx((steps[0]["base_loss"] + steps[1]["base_loss"]) / 2, rel=1e-5)


@ALL_METHODS
def test_the_held_out_loss_does_not_depend_on_the_batch(method: str, spans: Spans):
    """Though the last batch is shorter, and has padding."""
    losses = []
    for size in (8, 3):
        one = trainer(quiet_star(LLAMA, method=method), spans, replace(TRAIN, batch_size=size))
        losses.append([one.evaluate()[f"eval_{name}"] for name in ("base_loss", "talk_loss")])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)


def test_at_a_mixing_weight_of_0_the_losses_with_and_without_thoughts_are_equal(spans: Spans):
    """To the last bit, over all lookahead distances; both are means over the same tokens, by hand."""
    model = quiet_star(LLAMA, lookahead=3)
    with torch.no_grad():
        model.mixing_head[-1].weight.zero_()
    one = trainer(model, spans, replace(TRAIN, steps=1, learning_rate=0.0, mixing_head_learning_rate=0.0))
    for row in one.run()[:-1]:
        losses = [next(value for name, value in row.items() if name.removeprefix("eval_") == loss) for loss in LOSSES]
        assert losses[1] == losses[2] != losses[0]
    batch = {name: torch.stack([spans[i][name] for i in range(8)]) for name in ("input_ids", "attention_mask")}
    logits = model.decoder.head.logits(model.decoder.read(*batch.values())[0]).log_softmax(-1)
    nll = [
        [-row[j, ids[j + 1]] for j in range(sum(m) - 1)] for row, ids, m in zip(logits, *batch.values(), strict=True)
    ]
    means = [torch.stack([loss for losses in nll for loss in losses[k:]]).mean() for k in range(3)]
    assert losses[1] == pytest.approx(torch.stack(means).mean().item(), rel=1e-5)


APART = replace(TRAIN, clip="apart", steps=1, gradient_clip=0.05)


def gradients_of_a_step(settings: params.Train, spans: Spans) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """The gradients with which the optimizer takes the only step, by parameter, and the log."""
    one, found = trainer(quiet_star(LLAMA, policy_weight=settings.policy_weight), spans, settings), {}
    clip = one.clip

    def spy(model: torch.nn.Module) -> torch.Tensor:
        norm = clip(model)
        found.update({name: p.grad.clone() for name, p in one.model.named_parameters()})
        return norm

    one.clip = spy
    return found, one.run()


@pytest.mark.parametrize("engine", [{}, {"accumulation": 2, "batch_size": 2}, {"checkpointing": True}], ids=str)
def test_language_modelling_and_policy_are_clipped_apart(engine: dict, spans: Spans):
    """Each by hand: the gradient of its terms of the whole step's loss, cut to the norm; then added up."""
    found, log = gradients_of_a_step(replace(APART, **engine), spans)
    one, model = trainer(quiet_star(LLAMA, policy_weight=5.0), spans, APART), quiet_star(LLAMA, policy_weight=5.0)
    (batch,) = list(one.get_train_dataloader())
    losses = model(**batch, sampling=Sampling(seed=one._seed), engine=Engine(apart=True)).losses
    norms, total = [], {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for loss in (losses.parts["base"] + losses.parts["talk"], losses.parts["policy"]):
        gradients = torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        norms.append(torch.cat([g.flatten() for g in gradients if g is not None]).norm().item())
        for gradient, sums in zip(gradients, total.values(), strict=True):
            if gradient is not None:
                sums += gradient * 0.05 / norms[-1]
    assert min(norms) > 0.05  # so that both are clipped
    assert column(log, "language_grad_norm") == pytest.approx(norms[:1], rel=1e-4)
    assert column(log, "policy_grad_norm") == pytest.approx(norms[1:], rel=1e-4)
    assert column(log, "loss") == pytest.approx([sum(losses.parts.values()).item()], rel=1e-4)
    for name, gradient in total.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6, msg=name)
    whole = torch.cat([gradient.flatten() for gradient in total.values()]).norm().item()
    assert column(log, "grad_norm") == pytest.approx([whole], rel=1e-4)


def test_clipped_apart_below_the_norm_is_not_clipped(spans: Spans):
    """Nor does a method without a policy have anything apart."""
    found, _ = gradients_of_a_step(replace(APART, gradient_clip=1e4), spans)
    expected, log = gradients_of_a_step(replace(TRAIN, steps=1, gradient_clip=1e4), spans)
    assert not any("policy_grad_norm" in row for row in log)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-4, atol=1e-6, msg=name)
    for method in ("no_policy", PAUSE, NO_THOUGHT):
        assert not has_policy(quiet_star(LLAMA, method=method))
    assert has_policy(quiet_star(LLAMA)) and not has_policy(quiet_star(LLAMA, policy_weight=0.0))


SLICED = {"positions": 3, "checkpointing": True}


@pytest.mark.parametrize(
    "method, engine",
    [
        (QUIET_STAR, {"attention": "reference"}),  # auto is blocked here
        (QUIET_STAR, {**SLICED, "accumulation": 2, "batch_size": 2}),
        (PAUSE, {**SLICED, "attention": "reference"}),
        (NO_THOUGHT, SLICED),
    ],
    ids=str,
)
def test_how_it_is_computed_changes_no_loss(method: str, engine: dict, spans: Spans, plain: dict[str, Run]):
    model, log = trained(spans, replace(TRAIN, **engine), method)
    for name in LOSS_COLUMNS:
        if name not in NOT_LOGGED[method]:
            assert column(log, name) == pytest.approx(column(plain[method][1], name), rel=2e-3, abs=1e-5), name
    if method != QUIET_STAR:  # whose two steps sample anew from weights that rounding has changed
        assert weights(model) == pytest.approx(weights(plain[method][0]), abs=1e-3)


@ALL_METHODS
def test_bfloat16_is_close_to_float32(method: str, spans: Spans, plain: dict[str, Run]):
    model, half = trained(spans, replace(TRAIN, precision="bfloat16"), method)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name in ("base_loss", "talk_loss"):
        first, single = column(half, name)[0], column(plain[method][1], name)[0]
        assert first == pytest.approx(single, rel=0.05) and first != single


@ALL_METHODS
def test_parameter_groups(method: str):
    """The mixing head has its own rate; matrices decay, but for learned tokens."""
    model = quiet_star(LLAMA, method=method)
    groups = parameter_groups(model, TRAIN)
    assert sum(len(group["params"]) for group in groups) == len(list(model.parameters()))
    setting = {id(p): (group["lr"], group["weight_decay"]) for group in groups for p in group["params"]}
    own = set(map(id, model.meta_tokens()))
    assert bool(own) == (method != NO_THOUGHT)
    for name, parameter in model.named_parameters():
        rate = 0.02 if name.startswith("mixing_head") else 0.01
        decay = 0.1 if parameter.ndim > 1 and id(parameter) not in own else 0.0
        assert setting[id(parameter)] == (rate, decay), name


def test_both_rates_warm_up_and_every_row_is_logged_once(spans: Spans):
    """Each rate from 0 in equal steps. The last step is evaluated even if it is not its turn."""
    settings = replace(TRAIN, steps=3, warmup_steps=4, evaluation_steps=2)
    one = trainer(quiet_star(LLAMA, policy_weight=5.0), spans, settings)
    log = one.run()
    assert list(logged(log, ["eval_base_loss"], needed="eval_base_loss")["step"]) == [0, 2, 3]
    pd.testing.assert_index_equal(logged(log, LOSS_COLUMNS, needed="loss").index, pd.RangeIndex(3))
    rates = {round(group["lr"], 6) for group in one.optimizer.param_groups}
    assert rates == {round(0.01 * 3 / 4, 6), round(0.02 * 3 / 4, 6)}


def test_a_loss_that_is_not_a_number_stops_the_run(spans: Spans):
    model = quiet_star(LLAMA)
    model.mixing_head[0].weight.data.fill_(math.inf)
    with pytest.raises(UserError, match="the held-out loss is nan after step 0"):
        trainer(model, spans).run()


@pytest.mark.parametrize("value, accumulation", [(math.nan, 1), (math.inf, 1), (math.nan, 2)])
def test_a_step_that_is_not_finite_never_reaches_the_weights(spans: Spans, value: float, accumulation: int):
    """Nor does a step of which only the first micro-batch is not finite."""
    settings = replace(TRAIN, steps=4, batch_size=4 // accumulation, accumulation=accumulation)
    one = trainer(quiet_star(LLAMA), spans, settings)
    compute: Callable[..., torch.Tensor] = one.compute_loss
    calls = []

    def spoil(*args: object, **kwargs: object) -> torch.Tensor:
        calls.append(one.state.global_step)
        return compute(*args, **kwargs) * (value if calls.count(2) == 1 else 1)

    one.compute_loss = spoil
    with pytest.raises(UserError, match=r"step 3: .*not finite, with texts \d, \d, \d, \d; .*checkpoint is none yet"):
        one.run()
    assert one.state.global_step == 2 and weights(one.model).isfinite().all()


@needs_8_bits
def test_moments_in_8_bits(spans: Spans, monkeypatch: pytest.MonkeyPatch):
    """A matrix of 4,096 numbers is the smallest that bitsandbytes does so with."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    find_8_bits()
    model = quiet_star({**LLAMA, "hidden_size": 64})
    one = trainer(model, spans, replace(TRAIN, optimizer="adamw_8bit", steps=30, policy_weight=0.0))
    losses_fall(one.run())
    state = {name: one.optimizer.state[value] for name, value in model.mixing_head.named_parameters()}
    assert state["0.weight"]["state1"].dtype == state["0.weight"]["state2"].dtype == torch.uint8
    assert state["0.bias"]["state1"].dtype == torch.float32


def test_8_bits_without_bitsandbytes(spans: Spans, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(UserError, match=r"train\.optimizer is adamw_8bit, which needs bitsandbytes: pip install"):
        trained(spans, replace(TRAIN, optimizer="adamw_8bit"))


def test_of_several_gpus_a_process_uses_one(tmp_path: Path):
    arguments = training_arguments("cpu", 1, tmp_path, per_device_train_batch_size=4)
    arguments._n_gpu = 8  # as the Trainer's own settings count a machine's
    assert arguments.n_gpu == 1 and arguments.train_batch_size == 4


@pytest.mark.parametrize(
    "error, raised",
    [
        (CheckpointException("", {0: (OSError(28, "No space left on device"), None)}), UserError),
        (OSError(28, "No space left on device"), UserError),
        (CheckpointException("", {1: (DistError("another process has ended"), None)}), DistError),
        (RuntimeError("[../gloo/transport] Connection closed by peer"), RuntimeError),
    ],
)
def test_a_checkpoint_that_cannot_be_written(
    error: BaseException, raised: type, spans: Spans, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: Trainer, *args: object) -> None:
        raise error

    monkeypatch.setattr(Trainer, "_save_checkpoint", fail)
    with pytest.raises(raised, match="No space left|another process|closed by peer") as caught:
        trainer(quiet_star(LLAMA), spans)._save_checkpoint()
    assert type(caught.value) is raised


def test_evaluating_is_no_part_of_the_time_that_a_checkpoint_takes(spans: Spans, monkeypatch: pytest.MonkeyPatch):
    """The Trainer evaluates between the step after which a checkpoint is due and its writing."""
    for name in ("LEAST_SECONDS", "LEAST_SHARE"):
        monkeypatch.setattr(f"pipeline.training.checkpoints.{name}", 0)
    times, log, publish = [], QuietStarTrainer.log, Checkpoints.publish
    monkeypatch.setattr(QuietStarTrainer, "log", lambda *args: times.append(("log", time.monotonic())) or log(*args))
    monkeypatch.setattr(Checkpoints, "publish", lambda *args: times.append(("save", args[2])) or publish(*args))
    trained(spans, replace(TRAIN, steps=2))  # logs step 0's evaluation, then each step's row and its evaluation
    assert [what for what, _ in times] == ["log", "log", "log", "save", "log", "log", "log"]
    assert times == sorted(times, key=lambda time: time[1])


def test_training_that_goes_wrong_is_told_of_as_it_does(spans: Spans, caplog: pytest.LogCaptureFixture):
    one, told = trainer(quiet_star(LLAMA), spans), []
    for step in range(60):
        caplog.clear()
        row = {"step": step, "reward": 0.1 if step < 30 or step % 2 else -3.0}
        row["mixing_weight"] = 0.0 if step < WINDOW else 1.0
        one.state.log_history += [row | {"base_loss": 1.0, "thought_entropy": 1.0}, {"eval_base_loss": 1.0}]
        one._warn()
        told += [(step, record.message) for record in caplog.records]
    reward, weight = told
    assert weight[0] == 2 * WINDOW - 1 and "predictions without thoughts no longer count" in weight[1]
    harmful = [{"step": 0, "eval_base_loss": 1.0}, {"step": 9, "eval_base_loss": 1.1, "eval_runtime": 1.0}]
    one.state.log_history += harmful
    one._warn()
    assert "step 9: training harms the model" in caplog.records[-1].message
    assert 30 < reward[0] < 50 and "thoughts make the text after them less likely" in reward[1]


LEARNED = replace(TRAIN, adapt="frozen", saved="learned")
ROUNDED = replace(TRAIN, adapt="frozen", precision="bfloat16")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a base model and spans of ten tokens."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    model_folder(tmp_path / "base", "llama", num_attention_heads=2, intermediate_size=24)
    for name in ("train", "heldout"):
        some_spans(tmp_path / f"{name}.arrow")
    return tmp_path


@pytest.fixture
def write(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Train, and after the last step call ``meanwhile`` with the trainer."""
    run = QuietStarTrainer.run

    def call(settings: params.Train, meanwhile: Callable[[QuietStarTrainer], object]) -> None:
        monkeypatch.setattr(QuietStarTrainer, "run", lambda self: (run(self), meanwhile(self))[0])
        places = (folder / name for name in ("base", "", "probe", "out", "results/train/out"))
        write_trained(settings, "pause", 1, *places)  # pauses read no probe

    return call


# architectures that no other test names, with what their defaults make too large
OTHERS = {
    "olmo2": {},
    "phi3": {"pad_token_id": 1, "intermediate_size": 24},
    "granite": {"intermediate_size": 24},
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_decoder_learns_by_the_path_of_its_folder_alone(name: str, tmp_path: Path, caplog):
    """With the preset of the real model: a share of the positions, clipped apart, in bfloat16."""
    with contextlib.chdir(SHIPPED.parent):
        changes = preset.options(["model=smollm2-135m", f"base_model.path={tmp_path}/{name}", "train.steps=2"])
    given = params.load(SHIPPED, changes)
    model_folder(tmp_path / name, name, num_attention_heads=2, num_key_value_heads=2, **OTHERS[name])
    pretrained_tokenizer(given.base_model).save_pretrained(tmp_path / "tokenizer")
    for split in ("train", "heldout"):
        some_spans(tmp_path / f"{split}.arrow")
    write_base_model(given.base_model, True, tmp_path, tmp_path / "base", tmp_path / "log.csv")
    write_rows(tmp_path / "probe.parquet", [], PROBE)
    places = (tmp_path / place for place in ("base", "", "probe.parquet", "out", "results/train/out"))
    write_trained(replace(given.train, device="cpu", evaluation_texts=4), QUIET_STAR, 1, *places)
    steps = pd.read_csv(tmp_path / "results/train/out/steps.csv")
    assert steps[["language_grad_norm", "policy_grad_norm", "talk_loss"]].notna().all().all()
    assert load_trained(tmp_path / "out").config.base["model_type"] == name
    assert "no step has the whole learning rate: train.warmup_steps is 10" in caplog.text
    digest = hashlib.sha256((tmp_path / "base/model.safetensors").read_bytes()).hexdigest()
    assert json.loads((tmp_path / "results/train/out/metrics.json").read_text())["base_weights"] == digest[:12]


@pytest.mark.parametrize("settings", [ROUNDED, LEARNED, TRAIN], ids=["rounded", "learned", "whole"])
def test_bfloat16_keeps_only_matrices_that_do_not_learn_in_it(settings: params.Train, write: Callable, folder: Path):
    kept = {}
    write(settings, lambda trainer: kept.update((name, w.dtype) for name, w in trainer.model.named_parameters()))
    rounded = {name for name, dtype in kept.items() if dtype == torch.bfloat16}
    assert rounded == {name for name in kept if settings is ROUNDED and ("proj" in name or "lm_head" in name)}
    assert set(kept.values()) - {torch.bfloat16} == {torch.float32}
    if settings is ROUNDED:  # weights that do not learn are written as they were read
        base, out = (load_file(folder / f"{name}/model.safetensors") for name in ("base", "out"))
        assert all(torch.equal(out[f"base.{name}"], value) for name, value in base.items())


def test_the_base_model_is_hashed_once(write: Callable, folder: Path, monkeypatch: pytest.MonkeyPatch):
    """By the run that trains on it, and by one that reads what was trained (its fingerprint has the bytes, too)."""
    read, file_digest = Counter(), hashlib.file_digest

    def count(file, how):
        read[Path(file.name)] += os.fstat(file.fileno()).st_size
        return file_digest(file, how)

    monkeypatch.setattr(hashlib, "file_digest", count)
    sizes = {path: path.stat().st_size for path in (folder / "base").iterdir()}
    write(LEARNED, lambda _: None)
    assert {path: size for path, size in read.items() if path in sizes} == sizes
    about = json.loads((folder / "out/learned.json").read_text())
    assert about["digests"].keys() == {path.name for path in sizes if path.suffix == ".safetensors"}
    files._digest.cache_clear()  # another process
    read.clear()
    fingerprint({}, [folder / "out", base_of(folder / "out")], Path(files.__file__), ())
    load_trained(folder / "out")
    assert {path: size for path, size in read.items() if path in sizes} == sizes


@pytest.mark.parametrize("settings", [ROUNDED, LEARNED], ids=["rounded", "learned"])
def test_a_base_model_that_changes_meanwhile(settings: params.Train, write: Callable, folder: Path):
    change = spoil.weights("base/model.safetensors", spoil.another)
    with pytest.raises(UserError, match="base changed while they were trained on: run `dvc repro train` again"):
        write(settings, lambda trainer: change(folder))
    assert not (folder / "out").exists()
