"""Quiet-STaR in the HF Trainer: its loss, its two learning rates, and what it logs."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainingArguments

from pipeline.errors import optional
from pipeline.loop import IGNORED, CheckedTrainer, Spans, check_loss
from pipeline.params import Train
from pipeline.thought.model import QuietStarForCausalLM, QuietStarOutput
from pipeline.thought.sampler import Sampling
from pipeline.thought.step import Engine
from pipeline.training.probe import Probe

LOSS_COLUMNS = ["base_loss", "talk_loss", "policy_loss", "reward", "positive_advantages", "mixing_weight"]
STEP_COLUMNS = ["loss", *LOSS_COLUMNS, "thought_entropy", "grad_norm", "learning_rate"]
HELDOUT_COLUMNS = ["base_loss", "talk_loss", "working_share"]
SEEDS_APART = 1_000_003  # between the draws of two runs' seeds: more than a run has steps


@dataclass(frozen=True)
class HeldOut:
    """What the model is watched on: spans of held-out text and, where workings are known, the probe."""

    spans: Spans
    probe: Probe | None


class QuietStarTrainer(CheckedTrainer):
    """Trains a `QuietStarForCausalLM`; a thought's draws depend on the seed, the step and the text's index."""

    def __init__(self, params: Train, heldout: HeldOut, args: TrainingArguments, **kwargs: object):
        self._params = params
        self._heldout = heldout
        self._parts: list[dict[str, float]] = []
        self._engine = Engine(params.attention, params.positions)
        super().__init__(args=args, eval_dataset=heldout.spans, **kwargs)

    def create_optimizer(self, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        """AdamW with the mixing head's own learning rate; only matrices decay."""
        self.optimizer = _adamw(parameter_groups(self.model, self._params), self._params.optimizer)
        return self.optimizer

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        seed = self._params.seed * SEEDS_APART + self.state.global_step
        output = model(**inputs, sampling=Sampling(seed=seed), engine=self._engine)
        self._parts.append(_parts(output, inputs["labels"]))
        return (output.loss, output) if return_outputs else output.loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            logs = {**logs, **{name: _mean([part[name] for part in self._parts]) for name in self._parts[0]}}
            self._parts.clear()
        super().log(logs, start_time)

    @torch.no_grad()
    def evaluate(self, *args, **kwargs) -> dict[str, float]:
        """Held-out base and talk loss in nats, and the share of sampled thoughts that hold the working."""
        self.model.eval()
        metrics = self._watched()
        check_loss(metrics["eval_talk_loss"], self.state.global_step)
        self.log(metrics)
        self.model.train()
        return metrics

    def _watched(self) -> dict[str, float]:
        losses = {"eval_base_loss": [], "eval_talk_loss": []}
        for batch in DataLoader(self._heldout.spans, batch_size=self.args.eval_batch_size):
            inputs = self._prepare_inputs(batch)
            parts = self.model(**inputs, sampling=Sampling(seed=self._params.seed), engine=self._engine).losses
            losses["eval_base_loss"].append(parts.base.item())
            losses["eval_talk_loss"].append(parts.talk.item())
        metrics = {name: _mean(values) for name, values in losses.items()}
        if self._heldout.probe is not None:
            metrics["eval_working_share"] = self._heldout.probe.share(self.model, self._params.seed)
        return metrics


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


def _parts(output: QuietStarOutput, labels: Tensor) -> dict[str, float]:
    """What a step logs of what its method has; means are over positions that are not padding."""
    losses, real = output.losses, labels != IGNORED
    parts = {"base_loss": losses.base.item(), "talk_loss": losses.talk.item()}
    if output.weight is None:
        return parts
    rewarded = real[:, : losses.reward.shape[2]].unsqueeze(1).expand_as(losses.reward)
    parts["reward"] = losses.reward[rewarded].mean().item()
    parts["mixing_weight"] = output.weight.detach().transpose(1, 2)[real].mean().item()
    if output.thoughts is None:
        return parts
    return parts | {
        "policy_loss": losses.policy.item(),
        "positive_advantages": (losses.advantage[rewarded] > 0).float().mean().item(),
        "thought_entropy": output.thoughts.entropy.transpose(1, 2)[real].mean().item(),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
