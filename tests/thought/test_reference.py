"""The authors' own numbers: every case in the folder that QUIET_STAR_REFERENCE names (method.md, `reference/`)."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from pipeline.authors import from_authors, from_their_counts
from pipeline.thought.objective import IGNORED, lookahead_targets
from pipeline.thought.sampler import Sampling

FOLDER = Path(os.environ.get("QUIET_STAR_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
CASES = sorted(path.parent for path in FOLDER.glob("*/case.json"))
TOLERANCE = 1e-5

pytestmark = pytest.mark.skipif(not CASES, reason=f"no reference cases in {FOLDER} (set QUIET_STAR_REFERENCE)")


def error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over norm of the reference."""
    assert actual.shape == expected.shape
    return ((actual - expected).norm() / expected.norm()).item()


class Case:
    def __init__(self, folder: Path):
        self.about = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        about = self.about
        self.model = from_authors(
            load_file(folder / "model.safetensors"),
            about["config"],
            policy_weight=about["policy_loss_beta"],
            start_token_id=about["start_token_id"],
            end_token_id=about["end_token_id"],
            **from_their_counts(about["n_ahead"], about["n_ahead_talk"], about["n_passes"]),
        )
        self.ids = self.expected["input_ids"].long()
        mask = self.expected["attention_mask"]
        self.mask = mask.long() if mask.dim() == 2 else None
        self.labels = self.ids.masked_fill(self.ids == about["pad_token_id"], IGNORED)

    def run(self, **options: object):
        return self.model(self.ids, self.mask, **options)


@pytest.fixture(params=CASES, ids=lambda c: c.name)
def case(request):
    return Case(request.param)


def train_only(case: Case) -> None:
    if case.about["mode"] != "train":
        pytest.skip("an evaluation case has no losses")


def test_losses(case):
    train_only(case)
    losses = case.run(labels=case.labels, thought_ids=case.expected["thought_ids"].long()).losses
    about, expected = case.about, case.expected
    rationales, tokens = about["n_passes"], case.ids.shape[1]
    assert losses.total.item() == pytest.approx(about["loss_total"], rel=TOLERANCE)
    assert losses.policy.item() == pytest.approx(about["loss_policy_unscaled"], rel=TOLERANCE)
    targets = lookahead_targets(case.labels, about["n_ahead_talk"])
    real = (targets != IGNORED).repeat_interleave(rationales, 0)
    base = losses.base_nll.repeat_interleave(rationales, 0)[:, : tokens - 1]
    assert error(base * real[:, : tokens - 1, 0], expected["loss.base"] * real[:, : tokens - 1, 0]) < TOLERANCE
    talk = losses.talk_nll.flatten(0, 1)
    for k in range(about["n_ahead_talk"]):
        kept = real[:, : tokens - 1 - k, k]
        assert error(talk[:, : tokens - 1 - k, k] * kept, expected[f"loss.talk.{k}"] * kept) < TOLERANCE


def test_rewards_and_log_probabilities(case):
    train_only(case)
    losses = case.run(labels=case.labels, thought_ids=case.expected["thought_ids"].long()).losses
    expected = case.expected
    positions = expected["reward"].shape[1]
    real = (case.labels != IGNORED).repeat_interleave(case.about["n_passes"], 0)[:, :positions]
    assert error(losses.reward.flatten(0, 1) * real, expected["reward"] * real) < TOLERANCE
    kept = real.unsqueeze(-1)
    assert error(losses.log_probs.flatten(0, 1) * kept, expected["action_logprob"] * kept) < TOLERANCE


def their_gradient(model: torch.nn.Module, name: str) -> Tensor:
    ours = name.replace("talk_head.0.", "mixing_head.")
    return dict(model.named_parameters())[ours if ours.split(".")[0] in OURS else f"base.{ours}"].grad


OURS = ("mixing_head", "start_embedding", "end_embedding")


def test_gradients(case):
    train_only(case)
    case.run(labels=case.labels, thought_ids=case.expected["thought_ids"].long()).loss.backward()
    for name, norm in case.about["grad_norm"].items():
        assert their_gradient(case.model, name).norm().item() == pytest.approx(norm, rel=TOLERANCE, abs=1e-9), name
    full = [name for name in case.expected if name.startswith("grad.")]
    assert full
    for name in full:
        expected = case.expected[name]
        expected = expected[0] if "_embedding" in name and expected.dim() == 2 else expected
        assert error(their_gradient(case.model, name.removeprefix("grad.")), expected) < TOLERANCE, name


def test_mixed_logits(case):
    if case.about["mode"] == "train":
        pytest.skip("a training case's logits are those of its last thought pass")
    with torch.no_grad():
        logits = case.run(thought_ids=case.expected["thought_ids"].long()).logits
    real = (case.labels != IGNORED).unsqueeze(-1)
    assert error(logits * real, case.expected["out.logits"] * real) < TOLERANCE


def test_greedy_thoughts(case):
    if case.about["mode"] == "train":
        pytest.skip("thoughts were sampled")
    with torch.no_grad():
        thoughts = case.run(sampling=Sampling(temperature=0.0)).thoughts
    real = (case.labels != IGNORED)[:, None, :, None].expand_as(thoughts.ids)
    assert torch.equal(thoughts.ids[real], case.expected["thought_ids"].long()[real])
