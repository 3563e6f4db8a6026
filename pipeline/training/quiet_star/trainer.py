"""Quiet-STaR in the HF Trainer: its loss, its two learning rates, and what it logs."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from pipeline.data.spans import IGNORED, Spans
from pipeline.errors import UserError, optional
from pipeline.params import Train
from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import Counts, counts_of, sum_counts
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine
from pipeline.training.processes import is_main
from pipeline.training.quiet_star.probe import Probe
from pipeline.training.trainer import CheckedTrainer
from pipeline.training.warnings import Watch

LOSS_COLUMNS = ["base_loss", "talk_loss", "policy_loss", "reward", "positive_advantages", "mixing_weight"]
STEP_COLUMNS = ["loss", *LOSS_COLUMNS, "thought_entropy", "grad_norm", "learning_rate"]
HELDOUT_COLUMNS = ["base_loss", "talk_loss", "working_share"]
SEEDS_APART = 1_000_003  # between the draws of two runs' seeds: more than a run has steps

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class HeldOut:
    """What the model is watched on: spans of held-out text and, where workings are known, the probe."""

    spans: Spans
    probe: Probe | None


class QuietStarTrainer(CheckedTrainer):
    """Trains a `QuietStarForCausalLM`; a thought's draws depend on the seed, the step and the text's index.

    The means of a step's losses are over all of its texts, whatever passes and processes they are spread over.
    """

    def __init__(self, params: Train, heldout: HeldOut, args: TrainingArguments, **kwargs: object):
        self._params = params
        self._heldout = heldout
        self._parts: list[tuple[int, dict[str, Tensor]]] = []  # a pass's step, and its share of what is logged
        self._engine = Engine(params.attention, params.positions)
        self._watch = Watch()
        self._seen = 0  # rows of the log that the watch has
        super().__init__(args, skipped_steps=params.skipped_steps, eval_dataset=heldout.spans, **kwargs)
        self.model_accepts_loss_kwargs = True  # the Trainer then leaves it to us to share the loss out over passes

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the mixing head's own learning rate; only matrices decay."""
        self.optimizer = _adamw(parameter_groups(self.model, self._params), self._params.optimizer)
        return self.optimizer

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Counts]:
        """This process's passes of a step, and what the step's means are over."""
        batches = list(islice(epoch_iterator, num_batches))
        parts = [counts_of(batch["labels"], self.model.lookahead) for batch in batches]
        return batches, self.accelerator.reduce(sum_counts(parts), "sum")

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seed, step = self._params.seed * SEEDS_APART, self.state.global_step
        output = model(**inputs, sampling=Sampling(seed=seed + step), counts=num_items_in_batch, engine=self._engine)
        self._parts.append((step, _parts(output, inputs["labels"], num_items_in_batch)))
        loss = output.loss * self.args.world_size  # gradients are averaged over processes, not added up
        return (loss, output) if return_outputs else loss

    def _skip(self, norm: float, texts: list[int]) -> None:
        super()._skip(norm, texts)
        self._parts = [part for part in self._parts if part[0] != self.state.global_step]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        trained = "loss" in logs and bool(self._parts)
        if trained:
            logs = {**logs, **self._means()}
        super().log(logs, start_time)
        if trained and is_main():
            self._warn()

    def _warn(self) -> None:
        """Tell of every rule of `pipeline.training.warnings` that is broken for the first time."""
        rows = self.state.log_history[self._seen :]  # after a resume also those of before
        self._seen += len(rows)
        for row in rows:
            if "base_loss" in row:
                for warning in self._watch.add(row):
                    log.warning(warning)

    def _means(self) -> dict[str, float]:
        """The means over the steps since the last row, of all processes."""
        steps, parts = zip(*self._parts, strict=True)
        self._parts = []
        shares = torch.stack([torch.stack(list(part.values())) for part in parts]).sum(0)
        means = self.accelerator.reduce(shares, "sum") / len(set(steps))
        return dict(zip(parts[0], means.tolist(), strict=True))

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Held-out base and talk loss in nats, and the share of sampled thoughts that hold the working."""
        self.model.eval()
        metrics = self._watched()
        if not math.isfinite(metrics["eval_talk_loss"]):
            raise UserError(
                f"the held-out loss is {metrics['eval_talk_loss']} after step {self.state.global_step}: lower the "
                "learning rate or the meta-token scale, or check the base model"
            )
        self.log(metrics)
        self.model.train()
        self.control.should_evaluate = False  # done: else the Trainer does it once more after the last step
        return metrics

    def _watched(self) -> dict[str, float]:
        batches = DataLoader(self._heldout.spans, batch_size=self.args.eval_batch_size)
        labels = (self._prepare_inputs(batch)["labels"] for batch in batches)
        counts = sum_counts(counts_of(some, self.model.lookahead) for some in labels)
        sampling, metrics = Sampling(seed=self._params.seed), {"eval_base_loss": 0.0, "eval_talk_loss": 0.0}
        for inputs in map(self._prepare_inputs, batches):
            parts = self.model(**inputs, sampling=sampling, counts=counts, engine=self._engine).losses
            metrics["eval_base_loss"] += parts.base.item()
            metrics["eval_talk_loss"] += parts.talk.item()
        if self._heldout.probe is not None:
            with gathered(self.model), self.accelerator.autocast():
                metrics["eval_working_share"] = self._heldout.probe.share(self.model, self._params.seed)
        return metrics


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """FSDP2 gathers what is in no layer (embeddings, head, mixing head) for the model's own forward pass only."""
    if not isinstance(model, FSDPModule):
        yield
        return
    model.unshard()
    yield
    model.reshard()


def parameter_groups(model: QuietStarForCausalLM, params: Train) -> list[dict]:
    """The optimizer's groups: mixing head or not, matrix (which decays; learned tokens do not) or not."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    tokens = set(map(id, model.meta_tokens()))
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        decays = parameter.ndim > 1 and id(parameter) not in tokens
        groups.setdefault((name.startswith("mixing_head."), decays), []).append(parameter)
    return [
        {
            "params": members,
            "lr": params.mixing_head_learning_rate if mixing else params.learning_rate,
            "weight_decay": params.weight_decay if matrix else 0.0,
        }
        for (mixing, matrix), members in groups.items()
    ]


def _adamw(groups: list[dict], kind: str) -> torch.optim.Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    with optional("bitsandbytes", f"train.optimizer is {kind}"):
        import bitsandbytes
    return bitsandbytes.optim.AdamW8bit(groups)


@torch.no_grad()
def _parts(output: QuietStarOutput, labels: Tensor, counts: Counts) -> dict[str, Tensor]:
    """These texts' share of what a step logs of what its method has; means are over positions that are not padding."""
    losses, real = output.losses, labels != IGNORED
    parts = {"base_loss": losses.base, "talk_loss": losses.talk}
    if output.weight is None:
        return parts
    rewarded, rewards = real[:, : losses.reward.shape[2]], losses.reward.transpose(1, 2)
    parts["reward"] = _share(rewards, rewarded, counts.rewards)
    parts["mixing_weight"] = _share(output.weight.transpose(1, 2), real, counts.tokens)
    if output.thoughts is None:
        return parts
    positive = (losses.advantage.transpose(1, 2) > 0).to(rewards.dtype)
    return parts | {
        "policy_loss": losses.policy,
        "positive_advantages": _share(positive, rewarded, counts.rewards),
        "thought_entropy": _share(output.thoughts.entropy.transpose(1, 2), real, counts.tokens),
    }


def _share(values: Tensor, where: Tensor, count: Tensor) -> Tensor:
    """What ``values`` (B, N, ...) at the positions ``where`` (B, N) add to the mean over ``count`` positions."""
    return values[where].flatten(1).mean(1).sum() / count.clamp(min=1)
