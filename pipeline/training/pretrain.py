"""The base model that later learns to think: pretrained here on the corpus, or an existing one."""

import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from pipeline.data.spans import Spans
from pipeline.errors import UserError
from pipeline.files import replacing, write_table
from pipeline.models.base import read_model, read_tokenizer, scratch_config
from pipeline.models.device import keep_memory, pick_device
from pipeline.params import BaseModel, Pretraining
from pipeline.training.checkpoints import checkpoints
from pipeline.training.trainer import CheckedTrainer, Speed, logged, training_arguments

COLUMNS = ["loss", "heldout_loss", "learning_rate"]  # of the log, after the step
DECAY = 4  # the learning rate falls to 0 over the last fourth of the steps
LOG_STEPS, HELDOUT_EVERY, HELDOUT_SPANS = 50, 10, 200  # steps; logged rows; spans


def write_base_model(params: BaseModel, isolate: bool, tokens: Path, out: Path, log: Path) -> None:
    """Write the base model and its tokenizer to the folder ``out``, and its loss by step to ``log`` (CSV).

    ``isolate``: documents that share a pretraining span do not attend to each other. Quiet-STaR reads packed spans as
    one text, so a base model for packed spans is pretrained without.
    Raises UserError for a model that is missing, broken or of a kind that cannot think in parallel.
    """
    keep_memory()
    tokenizer, training = read_tokenizer(tokens / "tokenizer"), params.pretraining
    set_seed(params.seed)
    if params.source == "hub":
        model = read_model(params.model, revision=params.revision)
        known = model.get_input_embeddings().num_embeddings
        # tokens that were added after the others may be beyond: Gemma 3's image token is, which no text has
        needed = max(tokenizer.vocab_size, tokenizer.pad_token_id + 1, (tokenizer.eos_token_id or 0) + 1)
        if needed > known:
            raise UserError(
                f"the model has embeddings for {known} tokens, but its tokenizer has {needed}: take its own"
            )
    else:
        model = AutoModelForCausalLM.from_config(scratch_config(params.scratch, len(tokenizer), tokenizer.eos_token_id))
    rows = pd.DataFrame(columns=["step", *COLUMNS])
    with ExitStack() as stack:
        if params.pretrains:
            inputs = [tokens / name for name in ("tokenizer", "pretrain.arrow", "heldout.arrow")]
            if params.source == "hub":
                # it was checked with thoughts' own; Gemma 2, which caps its scores, has no SDPA
                model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
                if (local := Path(params.model)).is_dir():
                    inputs.append(local)
            about = {"isolate": isolate, "device": pick_device("auto")} | asdict(params)
            folder = stack.enter_context(checkpoints("base_model", about, inputs, Path(__file__)))
            end = tokenizer.eos_token_id if isolate else None
            rows = _pretrain(model, training, params.seed, end, tokens, folder)
        with replacing(out) as part:
            model.save_pretrained(part)
            tokenizer.save_pretrained(part)
            write_table(log, rows)  # before the model has its name: two runs do not mix the two


def _pretrain(
    model: PreTrainedModel,
    training: Pretraining,
    seed: int,
    end: int | None,
    tokens: Path,
    folder: Path,
) -> pd.DataFrame:
    """Train the model, which is then on the CPU, and return the rows of its log; checkpoints go to ``folder``.

    Raises UserError for spans longer than the positions that the model knows, and for a loss that is not finite.
    """
    known = model.get_input_embeddings().num_embeddings
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None) or sys.maxsize
    spans = Spans(tokens / "pretrain.arrow", known)
    heldout = Spans(tokens / "heldout.arrow", known, HELDOUT_SPANS)
    for name, some in (("pretrain_span", spans), ("span", heldout)):
        if (length := len(some[0]["input_ids"])) > most:
            raise UserError(f"tokenize.{name} is {length}, but the model has {most} positions: make it smaller")
    arguments = training_arguments(
        "auto",
        seed,
        folder,
        max_steps=training.steps,
        per_device_train_batch_size=training.batch_size,
        learning_rate=training.learning_rate,
        lr_scheduler_type="warmup_stable_decay",
        lr_scheduler_kwargs={"num_decay_steps": training.steps // DECAY},
        warmup_steps=training.warmup_steps,
        weight_decay=training.weight_decay,
        adam_beta2=0.95,
        bf16=training.precision == "bfloat16",
        logging_steps=LOG_STEPS,
        eval_strategy="steps",
        eval_steps=LOG_STEPS * HELDOUT_EVERY,
    )
    data = {"model": model, "train_dataset": spans, "eval_dataset": heldout}
    speed = Speed(training.batch_size * spans.mean_length)
    log = PretrainTrainer(end, arguments, folder, speed, **data).run()
    rows = logged(log, ["loss", "learning_rate"], needed="loss").set_index("step")
    losses = logged(log, ["eval_loss"], needed="eval_loss").set_index("step")["eval_loss"].rename("heldout_loss")
    if not np.isfinite(losses).all():
        raise UserError("a held-out loss is not a finite number: lower base_model's learning_rate")
    model.to("cpu")
    return rows.join(losses, how="outer").reset_index().reindex(columns=["step", *COLUMNS])  # the last step has no row


class PretrainTrainer(CheckedTrainer):
    """Plain language modelling. Of packed documents, each ended by the token ``end``, none attends to another.

    ``end`` None: they do.
    """

    def __init__(self, end: int | None, *args: object, **kwargs: object):
        self._end = end
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        inputs = {name: value for name, value in inputs.items() if name != "text_keys"}
        if self._end is not None and inputs["attention_mask"].all():
            del inputs["attention_mask"]  # packed: transformers finds the documents by their position ids
            inputs["position_ids"] = document_positions(inputs["input_ids"], self._end)
        return super().compute_loss(model, inputs | {"use_cache": False}, return_outputs)


def document_positions(ids: Tensor, end: int) -> Tensor:
    """Position ids (B, N) of packed documents ``ids`` (B, N): each document, ended by ``end``, starts at 0."""
    order = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
    starts = torch.nn.functional.pad(ids[:, :-1] == end, (1, 0), value=True)
    return order - (order * starts).cummax(dim=1).values
