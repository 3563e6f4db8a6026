"""Quiet-STaR in the HF Trainer: its loss, its two learning rates, and what it logs."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import DataLoader, Dataset, Sampler, Subset
from transformers import TrainingArguments

from pipeline.errors import UserError, optional
from pipeline.params import Train
from pipeline.thought.gate import threshold_for
from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.objective import Counts, Losses, counts_of, lookahead_targets, sum_counts
from pipeline.thought.places import thinking
from pipeline.thought.sampler import Sampling, Thoughts
from pipeline.thought.step import Engine
from pipeline.training.processes import is_main
from pipeline.training.quiet_star.ema import Ema
from pipeline.training.quiet_star.epochs import Repeated, WholeBatches
from pipeline.training.quiet_star.probe import Probe
from pipeline.training.quiet_star.schedule import StageEnds, inner_epochs, scale_rates, stage_at
from pipeline.training.quiet_star.speed import speed_of
from pipeline.training.quiet_star.where import Where
from pipeline.training.trainer import CheckedTrainer, reads_checkpoint
from pipeline.training.warnings import HELDOUT_LOSS, Watch

# of the next token without thoughts; of all tokens ahead that the talk loss has, without thoughts and with
LOSSES = ["base_loss", "base_loss_ahead", "talk_loss"]
# unresolved_rewards: the share that rounding may have made
LOSS_COLUMNS = [*LOSSES, "policy_loss", "reward", "unresolved_rewards", "positive_advantages", "mixing_weight"]
STEP_COLUMNS = ["loss", *LOSS_COLUMNS, "thought_entropy", "grad_norm", "learning_rate"]
CLIP_COLUMNS = ["language_grad_norm", "policy_grad_norm"]  # before clipping, where they are clipped apart
HELDOUT_COLUMNS = [*LOSSES, *(f"working_share{task}" for task in ("", "_rings", "_animals"))]
MORE_COLUMNS = ["thought_length", "ema_gain"]  # where the run has them
# means over rewarded positions
REWARDED = ("reward", "unresolved_rewards", "positive_advantages", "policy_loss", "ema_gain")
APART, POLICY = "apart", "policy"  # `train.clip`, and the part of the loss
QUIET_STAR_PARTS = ("base", "talk", POLICY)
PART = "_part"  # ends the column of any other part of the loss, weighted as it counts
SMALL = ("mixing_head.", "objective.", "gate.")  # parameters of heads with a learning rate of their own
SEEDS_APART = 1_000_003  # between the sampling seeds of two runs: more than a run has steps
GATED_TEXTS = 512  # to choose the gate's threshold on

log = logging.getLogger(__name__)


class QuietStarTrainer(CheckedTrainer):
    """Trains a `QuietStarForCausalLM`. Sampled thoughts depend on the seed, the step and the text's index alone.

    A step's losses are means over all of its texts, however they are divided into micro-batches and processes. Held-out
    texts are the ``eval_dataset``; ``probe`` is None if no workings are known, ``where`` if every position thinks.
    """

    def __init__(
        self, params: Train, probe: Probe | None, where: Where | None, args: TrainingArguments, **kwargs: object
    ):
        self._params = params
        self._probe = probe
        self._where = where
        self._parts: list[dict[str, Tensor]] = []  # each micro-batch's share of the next row of the log
        self._counts: list[Counts] = []  # its step's, for each of them
        self._policy: dict[Tensor, Tensor] = {}  # the step's gradient of the policy part, by parameter
        self._norms: dict[str, float] = {}  # of the last step's gradients
        self._watch = Watch()
        self._watched = 0  # how many rows of the log the watch has read
        super().__init__(args, **kwargs)
        self._epochs = inner_epochs(params, self.model.config.method)
        self._batch: tuple[list[dict[str, Tensor]], Counts] | None = None  # of the last step that sampled thoughts
        self._rollouts: list[tuple[Thoughts, Losses]] = []  # what it sampled, by micro-batch
        self.add_callback(WholeBatches(self._epochs))  # after `Checkpoints`
        self._ema = None if params.ema is None or not self.model.has_thoughts else Ema(self.model, params.ema)
        if self._ema is not None:
            self.add_callback(self._ema)
        self._apart = params.clip == APART and has_policy(self.model)
        self._engine = Engine(params.attention, params.positions, self._apart)
        self._stage: int | None = None  # of `Train.every_stage`, that the model thinks by
        self._enter_stage()
        self.add_callback(StageEnds(params))
        self.model_accepts_loss_kwargs = True  # keeps the Trainer from dividing our loss by the micro-batches

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with a learning rate of their own for small heads (`parameter_groups`); only matrices decay."""
        groups = parameter_groups(self.model, self._params)
        if self._params.optimizer == "adamw":
            self.optimizer = torch.optim.AdamW(groups, fused=True)
        else:
            with optional("bitsandbytes", f"train.optimizer is {self._params.optimizer}"):
                import bitsandbytes
            self.optimizer = bitsandbytes.optim.AdamW8bit(groups)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None) -> LRScheduler:
        """The Trainer's, with the rates of the stages where there are any."""
        scheduler = super().create_scheduler(num_training_steps, optimizer)
        if self._params.stages:
            scale_rates(scheduler, self._params)
        return scheduler

    def _enter_stage(self) -> None:
        """Let the model think as the next step's stage does; held-out losses are then those of the last step's."""
        stage = stage_at(self._params, self.state.global_step)
        if self._params.stages and stage != self._stage:
            now = self._params.every_stage[stage]
            sizes = {"thought_tokens": now.thought_tokens, "lookahead": now.lookahead}
            self.model.config.update(sizes)
            self._speed = speed_of(replace(self._params, **sizes), self.model, self.train_dataset.mean_length)
            self._stage = stage

    def samples(
        self, epoch_iterator: Iterator[dict[str, Tensor]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Tensor]], Counts]:
        """This process's micro-batches of a step, and the counts that the step's means divide by.

        In an inner epoch they are those of the step before, each with the thoughts that it sampled.
        """
        self._enter_stage()
        batches = list(islice(epoch_iterator, num_batches))
        if self.state.global_step % self._epochs:
            batches, counts = self._batch
            pairs = zip(batches, self._rollouts, strict=True)
            return [batch | {"rollout": rollout} for batch, rollout in pairs], counts
        if self._where is not None and self.model.has_thoughts:
            with gathered(self.model), self.accelerator.autocast():
                batches = [batch | {"thinks": self._where.thinks(self.model, batch, self._seed)} for batch in batches]
        counts = (counts_of(batch["labels"], self.model.lookahead, batch.get("thinks")) for batch in batches)
        self._batch, self._rollouts = (batches, self.accelerator.reduce(sum_counts(counts), "sum")), []
        return self._batch

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        return Repeated(super()._get_train_sampler(train_dataset), self.step_texts, self._epochs)

    @property
    def _seed(self) -> int:
        """Of the step's draws."""
        return self.args.seed * SEEDS_APART + self.state.global_step // self._epochs

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        sampling = Sampling(self._params.thought_temperature, self._seed)
        thoughts, old = inputs.pop("rollout", (None, None))
        given = {} if old is None else {"thought_ids": thoughts.ids, "old": old}
        output = model(**inputs, **given, sampling=sampling, counts=num_items_in_batch, engine=self._engine)
        if old is not None:
            output.thoughts = thoughts
        elif self._epochs > 1:
            kept = replace(output.losses, total=output.loss.detach(), parts={})
            self._rollouts.append((output.thoughts, kept))
        parts = _logged_parts(output, num_items_in_batch)
        self._parts.append(parts | self._more_parts(inputs, output, num_items_in_batch))
        self._counts.append(num_items_in_batch)
        loss = self._set_policy_aside(output.losses) if self._apart else output.loss
        loss = loss * self.args.world_size  # as gradients are averaged over processes, not summed
        return (loss, output) if return_outputs else loss

    @torch.no_grad()
    def _more_parts(self, inputs: dict[str, Tensor], output: QuietStarOutput, counts: Counts) -> dict[str, Tensor]:
        """This micro-batch's contribution to the step's means of those of `MORE_COLUMNS` that the run has."""
        parts, losses, thoughts = {}, output.losses, output.thoughts
        if self.model.config.thoughts_end and thoughts is not None:
            lengths = thoughts.lengths.to(losses.reward.dtype).transpose(1, 2)
            parts["thought_length"] = _part_of_mean(lengths, losses.thinks, counts.thinking)
        if self._ema is not None:
            with self.accelerator.autocast():
                gains = self._ema.gains(inputs, losses, self._engine.attention).transpose(1, 2)
            parts["ema_gain"] = _part_of_mean(gains, losses.thinks[:, : gains.shape[1]], counts.rewards)
        return parts

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self._ema is not None and self.args.should_save:
            self._ema.save(Path(output_dir))

    @reads_checkpoint
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and isinstance(self.model, FSDPModule):
            # FSDP2 takes for its root what runs first: let it be the model, not a layer that `Where` reads a text with.
            # A run from the start evaluates first
            with torch.no_grad(), self.accelerator.autocast():
                self.model(torch.zeros(1, 2, dtype=torch.long, device=self.args.device))
        if self._ema is not None and checkpoint is not None:
            self._ema.load(Path(checkpoint))

    def _set_policy_aside(self, losses: Losses) -> Tensor:
        """Add the policy part's gradient to that of the step's other micro-batches; return the loss without it.

        The value is still that of the whole loss: the Trainer logs it.
        """
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        policy = losses.parts[POLICY]
        with torch.autocast(policy.device.type, enabled=False):
            found = torch.autograd.grad(policy, learned, retain_graph=True, allow_unused=True)
        for parameter, gradient in zip(learned, found, strict=True):
            if gradient is not None:
                known = self._policy.get(parameter)
                self._policy[parameter] = gradient.clone() if known is None else known.add_(gradient)
        return sum(loss for name, loss in losses.parts.items() if name != POLICY) + policy.detach()

    def clip(self, model: torch.nn.Module) -> Tensor:
        """Clip the gradient of the whole loss or, apart, those of its two parts, and add them up.

        Clipped together, the larger part is all that is left of the other's direction. Returns the norm before clipping
        or, apart, that of the sum. The gate's parameters and the objective's own (a learned value) are left out of this
        norm, as they would change how all else is clipped: the gate's are not clipped, the objective's by themselves.
        """
        own = list(self.model.objective.parameters())
        beside = own + list(self.model.gate.parameters() if self.model.gate is not None else ())
        gradients = [parameter.grad for parameter in beside]
        for parameter in beside:
            parameter.grad = None
        norm = self._clip_apart(model) if self._apart else super().clip(model)
        for parameter, gradient in zip(beside, gradients, strict=True):
            parameter.grad = gradient
        torch.nn.utils.clip_grad_norm_(own, self.args.max_grad_norm)
        return norm

    def _clip_apart(self, model: torch.nn.Module) -> Tensor:
        policy, self._policy = self._policy, {}
        learned = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        norms, language = [super().clip(model)], [parameter.grad for parameter in learned]
        for parameter in learned:  # in every process all of them, as they are summed over processes
            gradient = policy.get(parameter)
            gradient = torch.zeros_like(parameter) if gradient is None else gradient
            parameter.grad = self.accelerator.reduce(gradient, "sum")
        norms.append(super().clip(model))
        for parameter, gradient in zip(learned, language, strict=True):
            if gradient is not None:
                parameter.grad.add_(gradient)
        self._norms = dict(zip(CLIP_COLUMNS, (float(norm) for norm in norms), strict=True))
        return torch.nn.utils.get_total_norm([parameter.grad for parameter in learned])

    @torch.no_grad()
    def gate_threshold(self) -> float:
        """The threshold that the gate's scores exceed at a share `train.gate_share` of training texts' positions."""
        self.model.eval()
        texts = Subset(self.train_dataset, range(min(len(self.train_dataset), GATED_TEXTS)))
        some = []
        for batch in map(self._prepare_inputs, DataLoader(texts, batch_size=self.args.eval_batch_size)):
            with gathered(self.model), self.accelerator.autocast():
                scores = self.model.gate_scores(batch["input_ids"], batch["attention_mask"])
            some.append(scores[thinking(lookahead_targets(batch["labels"], 1), None)])
        return threshold_for(torch.cat(some), self._params.gate_share)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log a row. To a row about training steps add their means over all processes, and warn of bad signs in it."""
        if "loss" not in logs:
            super().log(logs, start_time)
            return
        super().log({**logs, **self._norms, **self._means()}, start_time)
        self._parts, self._counts = [], []
        if is_main():
            self._warn()

    def _means(self) -> dict[str, float]:
        """The means over the row's steps: of thoughts over those that think, of rewards over those that reward.

        A column of which no step has anything is left out.
        """
        sums = torch.stack([torch.stack(list(part.values())) for part in self._parts]).sum(0)
        sums = dict(zip(self._parts[0], self.accelerator.reduce(sums, "sum").tolist(), strict=True))
        passes = {"base_loss": len(self._counts)} | dict.fromkeys(REWARDED, sum(c.rewards > 0 for c in self._counts))
        thinking, each = sum(c.thinking > 0 for c in self._counts), self.args.gradient_accumulation_steps
        steps = {name: int(passes.get(name, thinking)) // each for name in sums}
        return {name: total / steps[name] for name, total in sums.items() if steps[name]}

    def _warn(self) -> None:
        """Log the warnings that the new rows of the log cause; after a resume all rows are new."""
        rows = self.state.log_history[self._watched :]
        self._watched += len(rows)
        for row in rows:
            for warning in self._watch.add(row) if row.keys() & {"base_loss", HELDOUT_LOSS} else ():
                log.warning(warning)

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Held-out losses in nats (`LOSSES`), and the share of sampled thoughts that hold the working."""
        self.model.eval()
        batches = DataLoader(self.eval_dataset, batch_size=self.args.eval_batch_size)
        labels = (self._prepare_inputs(batch)["labels"] for batch in batches)
        counts = sum_counts(counts_of(some, self.model.lookahead) for some in labels)
        sampling, metrics = Sampling(seed=self.args.seed), {f"eval_{name}": 0.0 for name in LOSSES}
        for inputs in map(self._prepare_inputs, batches):
            losses = self.model(**inputs, sampling=sampling, counts=counts, engine=self._engine).losses
            for name, loss in _losses(losses, counts).items():
                metrics[f"eval_{name}"] += loss.item()
        if self._probe is not None:
            with gathered(self.model), self.accelerator.autocast():
                shares = self._probe.shares(self.model, self.args.seed)
            metrics |= {f"eval_{name}": share for name, share in shares.items()}
        if not math.isfinite(metrics["eval_talk_loss"]):
            raise UserError(
                f"the held-out loss is {metrics['eval_talk_loss']} after step {self.state.global_step}: lower the "
                "learning rate or the meta-token scale, or check the base model"
            )
        self.log(metrics)
        if is_main():
            self._warn()
        self.model.train()
        self.control.should_evaluate = False  # else the Trainer evaluates a second time after the last step
        return metrics


@contextmanager
def gathered(model: torch.nn.Module) -> Iterator[None]:
    """Gather the embeddings and heads of a sharded model, which FSDP2 itself does in the model's forward pass only."""
    if isinstance(model, FSDPModule):
        model.unshard()
    yield
    if isinstance(model, FSDPModule):
        model.reshard()


def has_policy(model: QuietStarForCausalLM) -> bool:
    """Whether the model's loss has a policy part that counts."""
    return model.samples_thoughts and getattr(model.objective, "policy_weight", 0.0) > 0


def parameter_groups(model: QuietStarForCausalLM, params: Train) -> list[dict]:
    """The optimizer's groups: small heads or not, decaying or not. Matrices decay, except for learned tokens."""
    groups: dict[tuple[bool, bool], list[Tensor]] = {}
    tokens = set(map(id, model.meta_tokens()))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = parameter.ndim > 1 and id(parameter) not in tokens
            groups.setdefault((name.startswith(SMALL), decays), []).append(parameter)
    return [
        {
            "params": members,
            "lr": params.mixing_head_learning_rate if small else params.learning_rate,
            "weight_decay": params.weight_decay if decays else 0.0,
        }
        for (small, decays), members in groups.items()
    ]


@torch.no_grad()
def _logged_parts(output: QuietStarOutput, counts: Counts) -> dict[str, Tensor]:
    """This micro-batch's contribution to the step's logged means, of what its method has, over positions that think."""
    losses = output.losses
    parts = _losses(losses, counts)
    if output.weight is None:
        return parts
    others = losses.parts.keys() - {*QUIET_STAR_PARTS}
    parts |= {f"{name}{PART}": losses.parts[name].detach() for name in sorted(others)}
    rewarded, rewards = losses.thinks[:, : losses.reward.shape[2]], losses.reward.transpose(1, 2)
    parts["reward"] = _part_of_mean(rewards, rewarded, counts.rewards)
    parts["unresolved_rewards"] = _part_of_mean(
        (losses.reward.abs() <= losses.rounding).to(rewards.dtype).transpose(1, 2), rewarded, counts.rewards
    )
    parts["mixing_weight"] = output.weight.sum() / (output.weight.shape[1] * counts.targets.sum().clamp(min=1))
    if output.thoughts is None:
        return parts
    positive = (losses.advantage.transpose(1, 2) > 0).to(rewards.dtype)
    return parts | {
        "policy_loss": losses.policy,
        "positive_advantages": _part_of_mean(positive, rewarded, counts.rewards),
        "thought_entropy": _part_of_mean(output.thoughts.mean_entropy.transpose(1, 2), losses.thinks, counts.thinking),
    }


def _losses(losses: Losses, counts: Counts) -> dict[str, Tensor]:
    """This micro-batch's part of the `LOSSES`; ``base_loss_ahead`` is taken over the targets that talk_loss has.

    Those are x_{i+1+k} for every position i that thinks and k < A, so that the difference is what thoughts change.
    Both are summed in one order: at a mixing weight of 0 they are equal to the last bit.
    """
    rationales, talk_nll = losses.talk_nll.shape[1], losses.talk_nll
    if not rationales:
        return {"base_loss": losses.base, "base_loss_ahead": losses.base, "talk_loss": losses.talk}
    weights = 1 / (counts.distances * rationales * counts.targets.to(talk_nll.dtype).clamp(min=1))
    both = (losses.without_nll.expand_as(talk_nll), talk_nll)
    without, talk = ((nll.contiguous() * weights).sum() for nll in both)
    return {"base_loss": losses.base, "base_loss_ahead": without, "talk_loss": talk}


def _part_of_mean(values: Tensor, where: Tensor, count: Tensor) -> Tensor:
    """What ``values`` (B, N, ...) at the positions ``where`` (B, N) add to the mean over ``count`` positions."""
    return values[where].flatten(1).mean(1).sum() / count.clamp(min=1)
