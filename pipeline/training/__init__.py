"""Quiet-STaR training: from a base model and spans of text to a model that thinks."""

from pathlib import Path

import pandas as pd
from transformers import PreTrainedTokenizerBase, set_seed

from pipeline.allocator import keep_memory
from pipeline.errors import UserError
from pipeline.files import new_path, write_json, write_table
from pipeline.learned import limit_learning, save_trained
from pipeline.loop import Log, Spans, pick_device, read_tokenizer, training_arguments
from pipeline.params import Train
from pipeline.thought.model import QuietStarForCausalLM
from pipeline.trained import check_room, load_base
from pipeline.training.probe import read_probe
from pipeline.training.trainer import HELDOUT_COLUMNS, STEP_COLUMNS, HeldOut, QuietStarTrainer


def write_trained(params: Train, base: Path, tokens: Path, probe: Path, out: Path, results: Path) -> None:
    """Train on ``tokens``/train.arrow; write the model and its tokenizer to ``out``, the log to ``results``."""
    if params.attention == "flex" and pick_device(params.device) == "cpu":
        raise UserError("train.attention is flex, which needs a CUDA GPU to train on: set it to auto")
    keep_memory()
    set_seed(params.seed)
    tokenizer = read_tokenizer(base)
    model = thinking_model(params, base, tokenizer)
    spans = Spans(tokens / "train.arrow")
    row_tokens = model.layout.row_tokens if model.has_thoughts else 0
    check_room(model, len(spans[0]["input_ids"]) + row_tokens, "a span")
    asked = read_probe(probe, tokenizer, params.rationales) if model.samples_thoughts else None
    if asked is not None:
        check_room(model, asked.input_ids.shape[1] + 1 + params.thought_tokens, "a probe's prompt")
    heldout = HeldOut(Spans(tokens / "heldout.arrow", params.evaluation_texts), asked)
    log = Log(spans.mean_length)
    with training_arguments(params.device, params.seed, **_settings(params)) as arguments:
        trainer = QuietStarTrainer(params, heldout, arguments, model=model, train_dataset=spans, callbacks=[log])
        trainer.train()
        if params.steps % params.evaluation_steps:
            trainer.evaluate()
    with new_path(out) as folder:
        save_trained(model.to("cpu"), params, base, folder)
        tokenizer.save_pretrained(folder)
    watched = log.table([f"eval_{name}" for name in HELDOUT_COLUMNS], needed="eval_base_loss")
    watched = watched.rename(columns=lambda name: name.removeprefix("eval_"))
    write_table(results / "steps.csv", log.table(STEP_COLUMNS, needed="base_loss"))
    write_table(results / "heldout.csv", watched)
    write_table(results / "speed.csv", pd.DataFrame(log.speed))
    write_json(results / "metrics.json", _summary(params, watched, model, spans.mean_length))


def thinking_model(params: Train, base: Path, tokenizer: PreTrainedTokenizerBase) -> QuietStarForCausalLM:
    """Quiet-STaR, untrained, on the model in the folder ``base``."""
    meta_token = tokenizer(params.meta_token_text, add_special_tokens=False)["input_ids"]
    if not meta_token:
        raise UserError(f"train.meta_token_text {params.meta_token_text!r} has no token in this tokenizer")
    model = QuietStarForCausalLM.from_base(
        load_base(base),
        meta_token_ids=meta_token,
        method=params.method,
        thought_tokens=params.thought_tokens,
        lookahead=params.lookahead,
        rationales=params.rationales,
        meta_token_scale=params.meta_token_scale,
        policy_weight=params.policy_weight,
        policy_temperature=params.policy_temperature,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    limit_learning(model, params)
    return model


def _settings(params: Train) -> dict:
    return {
        "max_steps": params.steps,
        "per_device_train_batch_size": params.batch_size,
        "per_device_eval_batch_size": params.batch_size,
        "gradient_accumulation_steps": params.accumulation,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": params.warmup_steps,
        "max_grad_norm": params.gradient_clip,
        "logging_steps": params.log_steps,
        "eval_strategy": "steps",
        "eval_steps": params.evaluation_steps,
        "eval_on_start": True,
        "bf16": params.precision == "bfloat16",
        "gradient_checkpointing": params.checkpointing,
    }


def _summary(params: Train, watched: pd.DataFrame, model: QuietStarForCausalLM, mean_length: float) -> dict:
    first, last = watched.iloc[0], watched.iloc[-1]
    share = None
    if watched["working_share"].notna().all():
        share = {"first": float(first["working_share"]), "last": float(last["working_share"])}
    return {
        "method": params.method,
        "steps": params.steps,
        "text_tokens": round(params.steps * params.accumulation * params.batch_size * mean_length),
        "parameters": sum(p.numel() for p in model.parameters()),
        "working_share": share,
        "heldout": {
            when: {name: float(row[name]) for name in ("base_loss", "talk_loss")}
            for when, row in (("first", first), ("last", last))
        },
    }
