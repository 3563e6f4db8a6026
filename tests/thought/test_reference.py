"""The authors' own numbers: every case in the folder that QUIET_STAR_REFERENCE names."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pipeline.publish.authors import from_authors, from_their_counts
from pipeline.thought.model import QuietStarOutput
from pipeline.thought.objective import IGNORED, lookahead_targets
from pipeline.thought.sampler import Sampling
from tests.thought.tiny import error, gradients

FOLDER = Path(os.environ.get("QUIET_STAR_REFERENCE", Path(__file__).parents[3] / "shared" / "reference"))
CASES = sorted(path.parent for path in FOLDER.glob("*/case.json"))
TOLERANCE = 1e-5

pytestmark = needs_cases = pytest.mark.skipif(not CASES, reason=f"no reference cases in {FOLDER}, QUIET_STAR_REFERENCE")


class Case:
    def __init__(self, folder: Path):
        self.about = about = json.loads((folder / "case.json").read_text())
        self.expected = load_file(folder / "expected.safetensors")
        self.model = from_authors(
            load_file(folder / "model.safetensors"),
            about["config"],
            policy_weight=about["policy_loss_beta"],
            start_token_id=about["start_token_id"],
            end_token_id=about["end_token_id"],
            **from_their_counts(about["n_ahead"], about["n_ahead_talk"], about["n_passes"]),
        )
        self.ids, self.thoughts = self.expected["input_ids"].long(), self.expected["thought_ids"].long()
        mask = self.expected["attention_mask"]
        self.mask = mask.long() if mask.dim() == 2 else None
        self.labels = self.ids.masked_fill(self.ids == about["pad_token_id"], IGNORED)
        self.trains = about["mode"] == "train"

    def run(self, **options: object) -> QuietStarOutput:
        return self.model(self.ids, self.mask, **options)


@pytest.fixture(params=CASES, ids=lambda folder: folder.name, scope="module")
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


def test_losses_rewards_and_gradients(case):
    if not case.trains:
        pytest.skip("an evaluation case has no losses")
    losses = case.run(labels=case.labels, thought_ids=case.thoughts).losses
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

    real = (case.labels != IGNORED).repeat_interleave(rationales, 0)[:, : expected["reward"].shape[1]]
    assert error(losses.reward.flatten(0, 1) * real, expected["reward"] * real) < TOLERANCE
    # a token before padding predicts nothing, so ours does not think there
    kept = (targets[..., 0] != IGNORED).repeat_interleave(rationales, 0)[:, : real.shape[1], None]
    assert error(losses.log_probs.flatten(0, 1) * kept, expected["action_logprob"] * kept) < TOLERANCE

    found = gradients(case.model, losses.total)
    for name, norm in about["grad_norm"].items():
        assert found[our_name(name)].norm().item() == pytest.approx(norm, rel=TOLERANCE, abs=1e-9), name
    whole = {name: gradient for name, gradient in expected.items() if name.startswith("grad.")}
    assert whole
    for name, gradient in whole.items():
        gradient = gradient[0] if "_embedding" in name and gradient.dim() == 2 else gradient
        assert error(found[our_name(name.removeprefix("grad."))], gradient) < TOLERANCE, name


def our_name(theirs: str) -> str:
    name = theirs.replace("talk_head.0.", "mixing_head.")
    own = name.split(".")[0] in ("mixing_head", "start_embedding", "end_embedding")
    return name if own else f"base.{name}"


@torch.no_grad()
def test_mixed_logits_and_greedy_thoughts(case):
    if case.trains:
        pytest.skip("thoughts were sampled, and the logits are those of the last thought pass")
    real = (case.labels != IGNORED).unsqueeze(-1)
    logits = case.run(thought_ids=case.thoughts).logits
    assert error(logits * real, case.expected["out.logits"] * real) < TOLERANCE
    thoughts = case.run(sampling=Sampling(temperature=0.0)).thoughts
    real = real.unsqueeze(1).expand_as(thoughts.ids)
    assert torch.equal(thoughts.ids[real], case.thoughts[real])
