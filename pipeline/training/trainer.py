"""What both training stages share: the order of texts, the HF Trainer's settings, the log, the checks."""

import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, count, islice
from pathlib import Path

import pandas as pd
import torch
from accelerate import FullyShardedDataParallelPlugin
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.distributed.tensor import DTensor
from torch.utils.data import Dataset, Sampler
from transformers import Trainer, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME

from pipeline.errors import UserError, reason
from pipeline.models.base import all_finite
from pipeline.models.device import pick_device
from pipeline.training.checkpoints import HALF, Checkpoints, last_checkpoint, step_of
from pipeline.training.processes import has_lost_another, is_sharded, processes, stand_alone

log = logging.getLogger(__name__)

NUMBERS_AT_ONCE = 2**16  # as Python's integers, which take four times the memory of a tensor's

# of sharded weights under autocast: gathered in bfloat16, gradients added up in float32. accelerate's own would round
# rotary embeddings, gradients and losses too
BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


class TextOrder(Sampler):
    """The numbers of the texts of all of a run's steps: each epoch in an order of its own, the last one cut short.

    It depends on the seed alone, not on how many texts a process or a pass takes.
    """

    def __init__(self, texts: int, wanted: int, seed: int):
        self._texts, self._wanted, self._seed = texts, wanted, seed

    def __len__(self) -> int:
        return self._wanted

    def __iter__(self) -> Iterator[int]:
        return islice(chain.from_iterable(map(self._epoch, count())), self._wanted)

    def _epoch(self, number: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed + number)
        for some in torch.randperm(self._texts, generator=generator).split(NUMBERS_AT_ONCE):
            yield from some.tolist()


class CheckedTrainer(Trainer):
    """The HF Trainer, with our order of texts and our checkpoints, refusing steps that would poison the weights.

    ``folder`` is where checkpoints are; a run goes on from the last one there. A step whose loss or gradient is not
    finite raises UserError before the optimizer sees it or, where fewer than ``skipped_steps`` were, is left out.
    """

    def __init__(self, args: TrainingArguments, folder: Path, skipped_steps: int = 0, **kwargs: object):
        self._folder = folder
        self._allowed = skipped_steps
        self._texts: list[Tensor] = []  # of the step, and whether each of its losses is finite
        self._finite: list[Tensor] = []
        self._losses: list[Tensor] = []  # of the step, as the Trainer adds them up
        self._left_out: list[Tensor] = []  # what the steps that were skipped since the last row have added
        self._clock = (time.perf_counter(), 0)
        self._checkpoints = Checkpoints(folder)
        super().__init__(args=args, callbacks=[self._checkpoints], **kwargs)

    def run(self) -> list[dict]:
        """Train to the end, from the last checkpoint if there is one. Returns every row that was logged."""
        checkpoint = last_checkpoint(self._folder)
        if checkpoint is not None:
            log.info("going on from %s", checkpoint)
            self._clock = (time.perf_counter(), step_of(checkpoint))
            self._check_checkpoint(checkpoint)
        self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        self._check_weights()
        return self.state.log_history

    def _check_checkpoint(self, checkpoint: Path) -> None:
        """Raise UserError where a file is missing without which the Trainer would go on all the same."""
        random = f"rng_state_{self.args.process_index}.pth" if processes() > 1 else "rng_state.pth"
        with self._reading(checkpoint):
            TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
            for name in (SCHEDULER_NAME, random, *([] if is_sharded() else [OPTIMIZER_NAME])):
                (checkpoint / name).stat()

    def _load_from_checkpoint(self, checkpoint: str, *args: object, **kwargs: object) -> None:
        with self._reading(checkpoint):
            super()._load_from_checkpoint(checkpoint, *args, **kwargs)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with self._reading(checkpoint):
            super()._load_rng_state(checkpoint)

    @staticmethod
    @contextmanager
    def _reading(checkpoint: Path | str | None) -> Iterator[None]:
        """Raise UserError where the block cannot read the checkpoint."""
        try:
            yield
        except (Exception, CheckpointException) as error:  # torch, safetensors and json each raise their own
            cause = _cause(error)
            if has_lost_another(cause):
                raise cause from None
            raise UserError(
                f"the checkpoint {checkpoint} cannot be read ({reason(cause)}): remove it to start afresh"
            ) from error

    def _build_accelerator_args(self, **kwargs: object) -> dict:
        arguments = super()._build_accelerator_args(**kwargs)
        if is_sharded() and self.args.bf16:
            arguments["fsdp_plugin"] = FullyShardedDataParallelPlugin(mixed_precision_policy=BFLOAT16)
        return arguments

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> TextOrder:
        args, texts = self.args, len(self.train_dataset)
        step = args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size
        return TextOrder(texts, args.max_steps * step, args.data_seed)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: object) -> Tensor:
        loss = super().training_step(model, inputs, *args)
        self._texts.append(inputs["text_keys"])
        self._finite.append(loss.isfinite())
        self._losses.append(loss.nan_to_num(0.0, 0.0, 0.0))  # one that is no number stops or skips the step
        return self._losses[-1]

    def _clip_grad_norm(self, model: torch.nn.Module) -> Tensor:
        """The gradient's norm, clipped; 0 and no gradient where the step must be skipped."""
        norm = super()._clip_grad_norm(model)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        finite = torch.stack(self._finite).all() & norm.isfinite().to(self.args.device)
        texts, loss = torch.cat(self._texts), torch.stack(self._losses).sum()
        self._texts, self._finite, self._losses = [], [], []
        if self.accelerator.reduce(finite.float(), "mean") == 1:
            return norm
        self._skip(float(norm), self.accelerator.gather(texts).tolist())
        self._left_out.append(self.accelerator.reduce(loss, "mean"))
        model.zero_grad()
        return torch.zeros_like(norm)

    def _skip(self, norm: float, texts: list[int]) -> None:
        """Leave this step out. Raises UserError where no more may be."""
        step, skipped = self.state.global_step + 1, sum("skipped" in row for row in self.state.log_history)
        told = f"step {step}: the loss or the gradient (norm {norm:.4g}) is not finite, with texts {_listed(texts)}"
        if skipped >= self._allowed:
            raise UserError(
                f"{told}; the last good checkpoint is {last_checkpoint(self._folder) or 'none yet'}: lower the "
                "learning rate, the policy weight or the meta-token scale, or check the base model"
            )
        log.warning("%s: skipped (%d of at most %d)", told, skipped + 1, self._allowed)
        self.state.log_history.append({"step": step, "skipped": True})

    def _check_weights(self) -> None:
        """Raises UserError where a finite step was so large that it has left weights that are not."""
        finite = all_finite(_here(weights) for weights in self.model.parameters() if weights.requires_grad)
        if self.accelerator.reduce(finite.float(), "mean") < 1:
            good = last_checkpoint(self._folder) or "none yet"
            raise UserError(
                f"step {self.state.global_step}: the weights are no longer finite; the last good checkpoint is {good}: "
                "lower the learning rate"
            )

    def _save_checkpoint(self, *args: object) -> None:
        self._checkpoints.begin()
        self._check_weights()
        try:
            super()._save_checkpoint(*args)
        except (Exception, CheckpointException) as error:  # torch and safetensors have their own for a full disk
            cause = _cause(error)
            if has_lost_another(cause):
                raise cause from None
            shutil.rmtree(self._folder / f"{HALF}{self.state.global_step}", ignore_errors=True)
            raise UserError(
                f"no checkpoint could be written to {self._folder} (is the disk full?): {reason(cause)}"
            ) from error

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Of the weights only those that learn: adapters without the base model below them."""
        learned = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: value for name, value in state.items() if name in learned})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row; one about training steps with steps a second, and with the loss of those that were not skipped.

        Where all were skipped it has no loss.
        """
        if "loss" in logs:
            now, (since, step) = time.perf_counter(), self._clock
            steps = self.state.global_step - step
            self._clock = now, self.state.global_step
            logs = self._without_skipped(logs, steps) | {"steps_per_second": steps / (now - since)}
        super().log(logs, start_time)

    def _without_skipped(self, logs: dict[str, float], steps: int) -> dict[str, float]:
        """A row about so many ``steps``, whose loss the Trainer has taken for the mean of them all."""
        left_out, self._left_out = self._left_out, []
        if not left_out:
            return logs
        logs, loss, kept = dict(logs), logs["loss"] * steps - float(sum(left_out)), steps - len(left_out)
        del logs["loss"]
        return logs | ({"loss": loss / kept} if kept else {})


def _cause(error: BaseException) -> BaseException:
    """What was raised in the first process that failed."""
    return next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error


def _here(weights: Tensor) -> Tensor:
    """What of them is in this process."""
    return weights.to_local() if isinstance(weights, DTensor) else weights


def _listed(texts: list[int], most: int = 32) -> str:
    return ", ".join(map(str, texts[:most])) + (f" and {len(texts) - most} more" if len(texts) > most else "")


def logged(rows: list[dict], columns: list[str], needed: str) -> pd.DataFrame:
    """The logged ``rows`` that have ``needed``, one a step, with these columns; blank where a row lacks one."""
    kept = {row["step"]: row for row in rows if needed in row}
    return pd.DataFrame(kept.values()).reindex(columns=["step", *columns])


class OneDevice(TrainingArguments):
    """Of a machine's GPUs a process uses one: the Trainer itself would split each batch over all (DataParallel)."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def training_arguments(device: str, seed: int, folder: Path, **settings: object) -> TrainingArguments:
    """The Trainer's settings; what it writes, checkpoints alone, goes to ``folder``."""
    stand_alone()
    cpu = pick_device(device) == "cpu"
    return OneDevice(
        output_dir=str(folder),
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and processes() > 1 else None,
        seed=seed,
        data_seed=seed,
        save_strategy="no",  # `Checkpoints` says when
        report_to=[],
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        **settings,
    )
