"""What both training stages share: the data set, the HF Trainer's settings, the log, the checks."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments

from pipeline.errors import UserError
from pipeline.files import arrow_table

IGNORED = -100


def read_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer that a stage wrote to ``folder``. Raises UserError where there is none."""
    if not folder.is_dir():  # transformers would look for a hub model of this name
        raise UserError(f"the folder {folder} is missing: run `dvc repro` to make it again")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # transformers and tokenizers each raise their own
        raise UserError(f"{folder} holds no usable tokenizer: run `dvc repro` to make it again") from error


class Spans(Dataset):
    """Spans of token ids (`pipeline.tokens`) as a model's inputs; padding is neither attended to nor a label.

    They stay on the disk until they are used.
    """

    def __init__(self, path: Path, rows: int | None = None):
        table = arrow_table(path).slice(0, rows)
        if not len(table):
            raise UserError(f"{path} has no spans")
        self._ids = table["input_ids"]
        self._lengths = table["length"].to_numpy()

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.tensor(self._ids[index].values.to_numpy(), dtype=torch.long)
        mask = torch.arange(len(ids)) < int(self._lengths[index])
        return {
            "input_ids": ids,
            "attention_mask": mask.long(),
            "labels": ids.masked_fill(~mask, IGNORED),
            "text_keys": torch.tensor(index),
        }

    @property
    def mean_length(self) -> float:
        """Tokens of a span that are not padding, on average."""
        return float(self._lengths.mean())


class Log(TrainerCallback):
    """Every row that the Trainer logs, with its step, and the text tokens trained on a second."""

    def __init__(self, tokens_per_text: float) -> None:
        self.rows: list[dict] = []
        self.speed: list[dict] = []
        self._tokens_per_text = tokens_per_text
        self._since = (0.0, 0)

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._since = (time.perf_counter(), 0)

    def on_log(self, args, state, control, logs, **kwargs) -> None:
        if "train_runtime" not in logs:  # the summary at the end holds nothing but times
            self.rows.append({"step": state.global_step, **logs})

    def on_step_end(self, args, state, control, **kwargs) -> None:
        now, (since, step) = time.perf_counter(), self._since
        if state.global_step % max(1, int(args.logging_steps)) == 0:
            texts = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            tokens = (state.global_step - step) * texts * self._tokens_per_text
            self.speed.append({"step": state.global_step, "tokens_per_second": round(tokens / (now - since), 1)})
            self._since = (now, state.global_step)

    def table(self, columns: list[str], needed: str) -> pd.DataFrame:
        """The logged rows that have ``needed``, one a step, with these columns; blank where a row lacks one."""
        rows = {row["step"]: row for row in self.rows if needed in row}
        return pd.DataFrame(rows.values()).reindex(columns=["step", *columns])


class CheckedTrainer(Trainer):
    """The HF Trainer, stopping at the first loss that is not a number."""

    def training_step(self, *args, **kwargs) -> Tensor:
        loss = super().training_step(*args, **kwargs)
        check_loss(loss.item(), self.state.global_step + 1)
        return loss


def check_loss(loss: float, step: int) -> None:
    """Raise UserError where the loss is not a number."""
    if not math.isfinite(loss):
        raise UserError(
            f"the loss is {loss} at step {step}: lower the learning rate or the meta-token scale, or check the base "
            "model"
        )


@contextmanager
def training_arguments(device: str, seed: int, **settings: object) -> Iterator[TrainingArguments]:
    """The Trainer's settings, with a scratch folder for as long as the block lasts; nothing is saved or reported."""
    with TemporaryDirectory() as folder:
        yield TrainingArguments(
            output_dir=folder,
            use_cpu=pick_device(device) == "cpu",
            seed=seed,
            data_seed=seed,
            save_strategy="no",
            report_to=[],
            remove_unused_columns=False,
            logging_nan_inf_filter=False,
            dataloader_pin_memory=False,
            **settings,
        )


def pick_device(device: str) -> str:
    """``cuda`` or ``cpu``, from those or ``auto``. Raises UserError where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but no CUDA GPU is usable here: set it to auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
