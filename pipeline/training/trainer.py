"""What both training stages share: the HF Trainer with our order of texts, checkpoints, progress bar and checks."""

import logging
import os
import shutil
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm
from transformers import Trainer, TrainerCallback, TrainerState, TrainingArguments
from transformers.trainer import OPTIMIZER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import ProgressCallback

from pipeline.errors import UserError, reason
from pipeline.models.base import all_finite
from pipeline.models.device import pick_device
from pipeline.training.checkpoints import UNFINISHED, Checkpoints, last_checkpoint
from pipeline.training.processes import LAUNCHED, has_lost_another, is_launched, is_sharded, processes

log = logging.getLogger(__name__)

INDICES_AT_ONCE = 2**16  # as Python integers, which take four times the memory of a tensor
TEXTS_NAMED = 32  # in an error
PRECISION = "ACCELERATE_MIXED_PRECISION"  # a variable that would override train.precision

# For sharded weights under autocast: gather in bfloat16, reduce gradients in float32. accelerate's own policy would
# round rotary embeddings, gradients and losses too.
BFLOAT16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False)


@dataclass(frozen=True)
class Speed:
    """The ``tokens`` of an optimizer step, and its share of what all devices could do in a second, if that is known."""

    tokens: float
    share: float | None = None

    def of(self, steps_per_second: float) -> dict[str, float]:
        """What a row of the log says: tokens of text a second, and MFU (Chowdhery et al. 2022, appendix B)."""
        used = {} if self.share is None else {"mfu": self.share * steps_per_second}
        return {"tokens_per_second": self.tokens * steps_per_second} | used


class TextOrder(Sampler):
    """The text indices for a whole run, ``wanted`` in all: each epoch is a new permutation, and the last is cut short.

    The order depends on the seed alone, not on how micro-batches and processes divide the texts.
    """

    def __init__(self, texts: int, wanted: int, seed: int):
        self._texts, self._wanted, self._seed = texts, wanted, seed

    def __len__(self) -> int:
        return self._wanted

    def __iter__(self) -> Iterator[int]:
        return islice(chain.from_iterable(map(self._epoch, count())), self._wanted)

    def _epoch(self, number: int) -> Iterator[int]:
        # hashed, so that no epoch of one seed has the order of an epoch of another
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed}/{number}".encode()))
        for some in torch.randperm(self._texts, generator=generator).split(INDICES_AT_ONCE):
            yield from some.tolist()


class StepBar(TrainerCallback):
    """A progress bar of optimizer steps with the time left, and the last logged loss and speed; the main process's."""

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        hidden, done = not state.is_world_process_zero, state.global_step
        self._bar = tqdm(
            total=state.max_steps, initial=done, desc="training", unit=" steps", mininterval=2, disable=hidden
        )

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self._bar.update()

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        if "loss" in logs:
            shown = {"loss": f"{logs['loss']:.4g}"}
            if "tokens_per_second" in logs:
                shown["tokens/s"] = f"{logs['tokens_per_second']:.0f}"
            if "mfu" in logs:
                shown["mfu"] = f"{logs['mfu']:.0%}"
            self._bar.set_postfix(shown, refresh=False)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._bar.close()


@contextmanager
def _as_user_error(message: str) -> Iterator[None]:
    """Turn a failure to read or write a checkpoint into a UserError: ``message``, with its reason in place of %s.

    A want of memory is none of the checkpoint's, and `errors.run` tells of it.
    """
    try:
        yield
    except (UserError, MemoryError, torch.OutOfMemoryError):
        raise
    except (Exception, CheckpointException) as error:  # torch, safetensors and json each raise their own
        cause = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
        if has_lost_another(cause):
            raise cause from None
        raise UserError(message.replace("%s", reason(cause))) from error


def reads_checkpoint(load: Callable[..., None]) -> Callable[..., None]:
    """Wrap a method that loads part of a checkpoint: its errors become UserErrors that name the checkpoint."""

    def read(self: Trainer, checkpoint: Path | str | None, *args: object, **kwargs: object) -> None:
        with _as_user_error(f"the checkpoint {checkpoint} cannot be read (%s): remove it to start afresh"):
            load(self, checkpoint, *args, **kwargs)

    return read


class CheckedTrainer(Trainer):
    """The HF Trainer, which checkpoints in ``folder``, resumes from the last checkpoint there, and refuses bad steps.

    A step whose loss or gradient is not finite raises UserError before the optimizer changes the weights.
    """

    def __init__(self, args: TrainingArguments, folder: Path, speed: Speed | None = None, **kwargs: object):
        self._folder, self._speed = folder, speed
        self._texts: list[Tensor] = []  # the indices of each micro-batch of the step
        self._finite: list[Tensor] = []  # whether each one's loss is finite
        self._clock: tuple[float, int] | None = None  # when the steps of the next row began, and the step before
        self._checkpoints = Checkpoints(folder)
        super().__init__(args=args, callbacks=[self._checkpoints, StepBar()], **kwargs)
        self.remove_callback(ProgressCallback)

    def run(self) -> list[dict]:
        """Train to the end, from the last checkpoint if there is one. Returns every row that was logged."""
        checkpoint = last_checkpoint(self._folder)
        if checkpoint is not None:
            log.info("going on from %s", checkpoint)
            self._check_checkpoint(checkpoint)
        with logging_redirect_tqdm([logging.getLogger("pipeline")]):  # so that a message has a line of its own
            self.train(resume_from_checkpoint=checkpoint and str(checkpoint))
        self._check_weights()
        return self.state.log_history

    @reads_checkpoint
    def _check_checkpoint(self, checkpoint: Path) -> None:
        """Raise UserError if files are missing that the Trainer would silently do without."""
        random = f"rng_state_{self.args.process_index}.pth" if processes() > 1 else "rng_state.pth"
        TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME))
        for name in (SCHEDULER_NAME, random, *([] if is_sharded() else [OPTIMIZER_NAME])):
            (checkpoint / name).stat()

    _load_from_checkpoint = reads_checkpoint(Trainer._load_from_checkpoint)
    _load_optimizer_and_scheduler = reads_checkpoint(Trainer._load_optimizer_and_scheduler)
    _load_rng_state = reads_checkpoint(Trainer._load_rng_state)

    def _build_accelerator_args(self, **kwargs: object) -> dict:
        arguments = super()._build_accelerator_args(**kwargs)
        if is_sharded() and self.args.bf16:
            arguments["fsdp_plugin"] = FullyShardedDataParallelPlugin(mixed_precision_policy=BFLOAT16)
        return arguments

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> TextOrder:
        return TextOrder(len(self.train_dataset), self.args.max_steps * self.step_texts, self.args.data_seed)

    @property
    def step_texts(self) -> int:
        """How many texts all processes read in an optimizer step."""
        args = self.args
        return args.per_device_train_batch_size * args.gradient_accumulation_steps * args.world_size

    def get_batch_samples(self, *args: object) -> tuple[list[dict[str, Tensor]], object]:
        """A step's micro-batches, and what its means divide by. A row's speed is of the time from here on."""
        self._clock = self._clock or (time.perf_counter(), self.state.global_step)
        return self.samples(*args)

    def samples(self, *args: object) -> tuple[list[dict[str, Tensor]], object]:
        """`get_batch_samples`, as the HF Trainer does it."""
        return super().get_batch_samples(*args)

    def training_step(self, model: torch.nn.Module, inputs: dict[str, Tensor], *args: object) -> Tensor:
        loss = super().training_step(model, inputs, *args)
        self._texts.append(inputs["text_keys"])
        self._finite.append(loss.isfinite())
        return loss

    def _clip_grad_norm(self, model: torch.nn.Module) -> Tensor:
        """Clip the gradient and return its norm.

        Raises UserError in every process if any process has a loss or gradient that is not finite.
        """
        norm = self.clip(model)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        finite = torch.stack(self._finite).all() & norm.isfinite().to(self.args.device)
        texts = torch.cat(self._texts)
        self._texts, self._finite = [], []
        if self.accelerator.reduce(finite.float(), "mean") < 1:
            numbers = self.accelerator.gather(texts).tolist()
            more = f" and {len(numbers) - TEXTS_NAMED} more" if len(numbers) > TEXTS_NAMED else ""
            raise UserError(
                f"step {self.state.global_step + 1}: the loss or the gradient (norm {float(norm):.4g}) is not finite, "
                f"with texts {', '.join(map(str, numbers[:TEXTS_NAMED]))}{more}; the last good checkpoint is "
                f"{last_checkpoint(self._folder) or 'none yet'}: lower the learning rate, the policy weight or the "
                "meta-token scale, or check the base model"
            )
        return norm

    def clip(self, model: torch.nn.Module) -> Tensor:
        """Clip the gradient, as the HF Trainer does, and return the norm that it had."""
        return super()._clip_grad_norm(model)

    def _check_weights(self) -> None:
        """Raise UserError if a finite step was so large that weights are no longer finite."""
        trained = (weights for weights in self.model.parameters() if weights.requires_grad)
        finite = all_finite(some.to_local() if isinstance(some, DTensor) else some for some in trained)
        if self.accelerator.reduce(finite.float(), "mean") < 1:
            raise UserError(
                f"step {self.state.global_step}: the weights are no longer finite; the last good checkpoint is "
                f"{last_checkpoint(self._folder) or 'none yet'}: lower the learning rate"
            )

    def _save_checkpoint(self, *args: object) -> None:
        began, written = time.monotonic(), self._folder / f"{UNFINISHED}{self.state.global_step}"
        self._check_weights()
        try:
            with _as_user_error(f"no checkpoint could be written to {self._folder} (is the disk full?): %s"):
                super()._save_checkpoint(*args)
                self._checkpoints.publish(written, began)
        except UserError:
            shutil.rmtree(written, ignore_errors=True)
            raise

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save only the weights that are trained: adapters without the base model below them."""
        trained = {name for name, parameter in self.model.named_parameters() if parameter.requires_grad}
        state = self.model.state_dict() if state_dict is None else state_dict
        super()._save(output_dir, {name: value for name, value in state.items() if name in trained})

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row, with its speed if it is about training steps."""
        if "loss" in logs:
            (since, step), self._clock = self._clock, None  # evaluation and checkpoint come before the next step
            rate = (self.state.global_step - step) / (time.perf_counter() - since)
            logs = logs | {"steps_per_second": rate} | (self._speed.of(rate) if self._speed else {})
        super().log(logs, start_time)


def logged(rows: list[dict], columns: list[str], needed: str) -> pd.DataFrame:
    """A table of the logged ``rows`` with the column ``needed``: one row a step, blank where a value is missing."""
    kept = {row["step"]: row for row in rows if needed in row}
    return pd.DataFrame(kept.values()).reindex(columns=["step", *columns])


class OneGpuArguments(TrainingArguments):
    """Arguments that limit a process to one GPU, because the Trainer would otherwise use DataParallel."""

    @property
    def n_gpu(self) -> int:
        return min(super().n_gpu, 1)


def training_arguments(
    device: str, seed: int, folder: Path, report_to: Sequence[str] = (), **settings: object
) -> TrainingArguments:
    """The Trainer's settings: it writes checkpoints to ``folder``, logs to ``report_to``, and nothing else.

    Also removes stray launcher variables, by which accelerate would take this for one of several processes and wait
    for the others.
    """
    if not is_launched():
        for name in (*LAUNCHED, PRECISION):
            os.environ.pop(name, None)
    cpu = pick_device(device) == "cpu"
    return OneGpuArguments(
        output_dir=str(folder),
        use_cpu=cpu,
        ddp_backend="gloo" if cpu and processes() > 1 else None,
        seed=seed,
        data_seed=seed,
        save_strategy="no",  # `Checkpoints` decides when
        use_cache=True,  # the Trainer writes this into the model's configuration, by which others will generate
        report_to=list(report_to),
        remove_unused_columns=False,
        logging_nan_inf_filter=False,
        dataloader_pin_memory=False,
        **settings,
    )
