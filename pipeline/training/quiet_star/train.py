"""Quiet-STaR training: from a base model and spans of text to a model that thinks."""

import hashlib
import logging
import math
import os
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import PreTrainedTokenizerBase, set_seed
from transformers.integrations import get_reporting_integration_callbacks

from pipeline.data.spans import Spans
from pipeline.errors import UserError, reason
from pipeline.files import digests, replacing, write_json, write_table
from pipeline.models.base import load_base, read_tokenizer
from pipeline.models.device import keep_memory, pick_device
from pipeline.models.trained import WEIGHTS, check_room, limit_learning, restore_frozen, round_frozen, save_trained
from pipeline.params import Train
from pipeline.thought.layout import Layout
from pipeline.thought.methods import METHODS
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.training.checkpoints import checkpoints, last_checkpoint
from pipeline.training.processes import SINGLE, is_main, is_sharded, join, processes
from pipeline.training.quiet_star.probe import read_probe
from pipeline.training.quiet_star.schedule import inner_epochs, settings_of, stage_at
from pipeline.training.quiet_star.speed import speed_of
from pipeline.training.quiet_star.trainer import (
    APART,
    CLIP_COLUMNS,
    HELDOUT_COLUMNS,
    LOSSES,
    MORE_COLUMNS,
    PART,
    STEP_COLUMNS,
    QuietStarTrainer,
)
from pipeline.training.quiet_star.where import EVERY, Where
from pipeline.training.trainer import logged, training_arguments

log = logging.getLogger(__name__)

TRACKED = Path("results/tracking")  # TensorBoard's files


def write_trained(
    params: Train, method: str, seed: int, base: Path, tokens: Path, probe: Path, out: Path, results: Path
) -> None:
    """Train on ``tokens``/train.arrow; write the model and its tokenizer to ``out``, the log to ``results``.

    A method that does not train (`Objective.trains`) takes no step: its held-out loss is measured once.
    Killed and run again, it resumes from its last checkpoint and writes the same bytes (`training.checkpoints`). Every
    process of a distributed run calls this; the main process writes. Raises UserError for settings that the device or
    FSDP cannot run, for inputs that cannot be trained on, and for numbers that are not finite.
    """
    params, device = settings_of(params, method), pick_device(params.device)
    _check_device_settings(params, device)
    if is_main() and 0 < params.every_stage[0].steps <= params.warmup_steps:
        log.warning("no step has the whole learning rate: train.warmup_steps is %d", params.warmup_steps)
    join(device)
    inputs = [base, tokens / "train.arrow", tokens / "heldout.arrow", probe]
    inputs += [] if params.launcher == SINGLE else [Path(params.launcher)]
    about = {name: value for name, value in asdict(params).items() if name != "trackers"}  # they change no output
    about |= {"method": method, "seed": seed, "device": device, "processes": processes()}
    with checkpoints(f"train/{out.name}", about, inputs, Path(__file__)) as folder:
        keep_memory()
        set_seed(seed)
        base_digests = digests(base, WEIGHTS) if is_main() else {}
        trainer = _trainer(params, method, seed, base, tokens, probe, folder)
        if params.steps:
            rows = trainer.run()
        else:
            trainer.evaluate()
            rows = trainer.state.log_history
        if is_main() and digests(base, WEIGHTS) != base_digests:
            raise UserError(f"the weights in {base} changed while they were trained on: run `dvc repro train` again")
        threshold = trainer.gate_threshold() if trainer.model.gate is not None else 0.0
        model = _whole_model(trainer.model, params, base)
        if model is not None:
            model.config.gate_threshold = threshold
            with replacing(out) as part:
                save_trained(model, params, base, base_digests, part)
                read_tokenizer(base).save_pretrained(part)
            _write_log(params, rows, model, trainer.train_dataset.mean_length, digest_of(base_digests), results)
        trainer.accelerator.wait_for_everyone()


def _check_device_settings(params: Train, device: str) -> None:
    """Raise UserError for settings that the device or FSDP cannot run, and for trackers that cannot be imported."""
    if params.attention == "flex" and device == "cpu":
        raise UserError("train.attention is flex, which needs a CUDA GPU to train on: set it to auto")
    if params.positions is not None and is_sharded():
        raise UserError("train.positions is set, but FSDP-sharded weights need all positions at once: make it null")
    if params.clip == APART and is_sharded():
        raise UserError("train.clip is apart, which FSDP-sharded weights cannot do: set it to together")
    for name in params.trackers:
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            needed = f"which needs {error.name}: pip install {error.name}"
            raise UserError(f"train.trackers names {name}, {needed}") from error
        except ImportError as error:
            raise UserError(f"train.trackers names {name}, which cannot be imported: {reason(error)}") from error
    if params.ema is not None and is_sharded():
        raise UserError("train.ema is set, but FSDP-sharded weights are not averaged: make it null")
    if params.optimizer == "adamw_8bit" and is_sharded():
        raise UserError("train.optimizer is adamw_8bit, which cannot change FSDP-sharded weights: set it to adamw")


def _trainer(
    params: Train, method: str, seed: int, base: Path, tokens: Path, probe: Path, folder: Path
) -> QuietStarTrainer:
    """The trainer with its model and data. Raises UserError for inputs that cannot be trained on, and for trackers."""
    first = last_checkpoint(folder) is None  # a resumed run has the evaluation before step 1 in its log
    name = f"{method}-{seed}"
    if params.trackers:
        os.environ.setdefault("TENSORBOARD_LOGGING_DIR", str(TRACKED / name))
    arguments = training_arguments(
        params.device, seed, folder, params.trackers, run_name=name, eval_on_start=first, **trainer_settings(params)
    )
    tokenizer = read_tokenizer(base)
    model = thinking_model(params, method, base, tokenizer)
    if params.precision == "bfloat16":
        round_frozen(model)
    spans = Spans(tokens / "train.arrow", model.vocabulary)
    heldout = Spans(tokens / "heldout.arrow", model.vocabulary, params.evaluation_texts)
    stages = params.every_stage
    rows = [Layout(stage.thought_tokens, stage.lookahead).row_tokens for stage in stages if model.has_thoughts]
    check_room(model, len(spans[0]["input_ids"]) + max(rows, default=0), "a span")
    asked = read_probe(probe, tokenizer, params.rationales) if model.samples_thoughts else None
    if asked is not None:
        longest = max(stage.thought_tokens for stage in stages)
        check_room(model, asked.input_ids.shape[1] + 1 + longest, "a probe's prompt")
    where = None if params.thinking.where == EVERY else Where(params.thinking, tokenizer)
    if where is not None:
        where.check(spans, min(stage.lookahead for stage in stages))
    data = {"train_dataset": spans, "eval_dataset": heldout}
    speed = speed_of(params, model, spans.mean_length)
    trainer = QuietStarTrainer(params, asked, where, arguments, folder=folder, speed=speed, model=model, **data)
    _start_trackers(params, trainer)
    return trainer


def _start_trackers(params: Train, trainer: QuietStarTrainer) -> None:
    """Start the trackers that wait for the first step. Raises UserError for one that cannot: no login, no server."""
    for name, kind in zip(params.trackers, get_reporting_integration_callbacks(params.trackers), strict=True):
        for tracker in trainer.callback_handler.callbacks:
            if isinstance(tracker, kind) and hasattr(tracker, "setup"):
                try:
                    tracker.setup(trainer.args, trainer.state, trainer.model)
                except Exception as error:  # of each library its own
                    raise UserError(f"train.trackers names {name}, which does not start: {reason(error)}") from error


def trainer_settings(params: Train) -> dict:
    """The Trainer's arguments from params.yaml. Raises UserError if processes cannot share micro-batches evenly."""
    if params.accumulation % processes():
        raise UserError(
            f"train.accumulation is {params.accumulation}, but {processes()} processes share an optimizer step's "
            f"passes: make it a multiple of {processes()} (and train.batch_size smaller, for as many texts a step)"
        )
    return {
        "max_steps": params.steps,
        "per_device_train_batch_size": params.batch_size,
        "per_device_eval_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.accumulation // processes(),
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": params.warmup_steps,
        "max_grad_norm": params.gradient_clip,
        "logging_steps": params.log_steps,
        "eval_strategy": "steps",
        "eval_steps": params.evaluation_steps,
        "bf16": params.precision == "bfloat16",
        "activation_checkpointing": params.checkpointing,
    }


def thinking_model(params: Train, method: str, base: Path, tokenizer: PreTrainedTokenizerBase) -> QuietStarForCausalLM:
    """The untrained model of ``method`` on ``base``, with frozen weights or adapters set up.

    Raises UserError if the meta-token text is empty.
    """
    meta_token = tokenizer(params.meta_token_text, add_special_tokens=False)["input_ids"]
    if not meta_token:
        raise UserError(f"train.meta_token_text {params.meta_token_text!r} has no token in this tokenizer")
    model = QuietStarForCausalLM.from_base(
        load_base(base),
        meta_token_ids=meta_token,
        method=method,
        thought_tokens=params.thought_tokens,
        lookahead=params.lookahead,
        rationales=params.rationales,
        meta_token_scale=params.meta_token_scale,
        policy_weight=params.policy_weight,
        policy_temperature=params.policy_temperature,
        advantage=params.advantage,
        distill_form=params.distill.form,
        distill_weight=params.distill.weight,
        token_cost=params.token_cost,
        ratio_clip=params.rlp.clip,
        thoughts_end=params.thoughts_end,
        gate=params.gate and METHODS[method].trains,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    limit_learning(model, params)
    return model


def _whole_model(trained: QuietStarForCausalLM, params: Train, base: Path) -> QuietStarForCausalLM | None:
    """The trained float32 model on the CPU in the main process, else None.

    All processes must call it: FSDP gathers shards here.
    """
    if is_sharded():
        for name, parameter in trained.named_parameters():  # also what a method has of its own and does not learn
            parameter.requires_grad_(parameter.requires_grad or not name.startswith("base."))
        options = StateDictOptions(full_state_dict=True, cpu_offload=True, ignore_frozen_params=True)
        weights = get_model_state_dict(trained, options=options)
    if not is_main():
        return None
    if is_sharded():
        model = thinking_model(params, trained.config.method, base, read_tokenizer(base))
        model.load_state_dict(
            {name: weights[name] for name, _ in model.named_parameters() if name in weights}, strict=False
        )
        return model
    model = trained.to("cpu")
    if params.precision == "bfloat16" and params.adapt != "whole":  # see `round_frozen`
        restore_frozen(model, load_base(base))
    return model


def digest_of(digests: dict[str, str]) -> str:
    """The first twelve digits of the SHA-256 of the one file of these, or of the names and digests of several."""
    if len(digests) == 1:
        return next(iter(digests.values()))[:12]
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests.items()))
    return hashlib.sha256(lines.encode()).hexdigest()[:12]


def _write_log(
    params: Train, rows: list[dict], model: QuietStarForCausalLM, text_tokens: float, weights: str, results: Path
) -> None:
    """Write steps.csv, heldout.csv and metrics.json, and the speed elsewhere, as it is no output: it always differs.

    ``text_tokens``: mean tokens per text. ``weights`` names those of the base model (`digest_of`).
    """
    heldout = logged(rows, [f"eval_{name}" for name in HELDOUT_COLUMNS], needed="eval_base_loss")
    heldout = heldout.rename(columns=lambda name: name.removeprefix("eval_"))
    step_tokens = params.accumulation * params.batch_size * text_tokens
    speed = logged(rows, ["tokens_per_second"], needed="tokens_per_second").round(1)
    columns = STEP_COLUMNS + (CLIP_COLUMNS if params.clip == APART else [])
    columns += sorted({name for row in rows for name in row if name.endswith(PART)})
    columns += [name for name in MORE_COLUMNS if any(name in row for row in rows)]
    steps = logged(rows, columns, needed="base_loss")
    if params.stages:
        for table in (steps, heldout):  # of the last step that a row is about
            table["stage"] = [1 + stage_at(params, max(step - 1, 0)) for step in table["step"]]
    write_table(results / "steps.csv", steps)
    write_table(results / "heldout.csv", heldout)
    write_table(results.parent.with_name("speed") / f"{results.name}.csv", speed)
    ends = {"first": heldout.iloc[0], "last": heldout.iloc[-1]}
    has_share = heldout["working_share"].notna().all()
    metrics = {
        "method": model.config.method,
        "base_weights": weights,
        "steps": params.steps,
        "text_tokens": round(math.ceil(params.steps / inner_epochs(params, model.config.method)) * step_tokens),
        "parameters": sum(p.numel() for p in model.parameters()),
        "working_share": {when: float(row["working_share"]) for when, row in ends.items()} if has_share else None,
        "heldout": {when: {name: float(row[name]) for name in LOSSES} for when, row in ends.items()},
    }
    write_json(results / "metrics.json", metrics)
