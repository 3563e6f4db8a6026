"""transformers' own tests of `generate` on a tiny model, where a copy of them is given; docs/running.md has the result.

They are in no package. With a checkout of transformers at the pinned version, and parameterized installed:
`GENERATION_TESTS=CHECKOUT/tests/generation/test_utils.py pytest -o addopts= -rs FILE`, where FILE is this one.
"""

import importlib.util
import os
import unittest
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from transformers import set_seed

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM
from tests.thought.tiny import END, LLAMA, START, random_ids

FILE = os.environ.get("GENERATION_TESTS")
if FILE is None:
    pytest.skip("GENERATION_TESTS names no copy of transformers' tests of generate", allow_module_level=True)
spec = importlib.util.spec_from_file_location("generation_tests", FILE)
suite = importlib.util.module_from_spec(spec)
spec.loader.exec_module(suite)

ATTENTIONS = "attn_implementation is 'eager', but thoughts see their text"  # asked for to get attentions
BEAMS = "only supports .* 'GenerationMode.BEAM_"
REFUSED = {
    "test_greedy_generate_dict_outputs": ATTENTIONS,
    "test_sample_generate_dict_output": ATTENTIONS,
    "test_beam_search_generate": BEAMS,
    "test_beam_search_generate_dict_output": ATTENTIONS,
    "test_beam_sample_generate": BEAMS,
    "test_beam_sample_generate_dict_output": ATTENTIONS,
    "test_prepare_inputs_for_generation_kwargs_forwards": "unexpected keyword argument 'position_ids'",
    "test_eager_padding_matches_padding_free_with_position_ids": "'max_position_embeddings' .* no setter",
}


class Tester:
    """What the suite asks of a model's tester: sizes, a configuration and texts, here padded on the left."""

    batch_size, seq_length = 4, 7

    def prepare_config_and_inputs_for_common(self) -> tuple[QuietStarConfig, dict[str, Tensor]]:
        base = LLAMA | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
        settings = {"thought_tokens": 3, "start_token_id": START, "end_token_id": END}
        mask = torch.ones(self.batch_size, self.seq_length, dtype=torch.long).tril(3).flip(1)
        config = QuietStarConfig(base=base, pad_token_id=0, bos_token_id=1, eos_token_id=2, **settings)
        return config, {"input_ids": random_ids(*mask.shape), "attention_mask": mask}


class TestTransformersSuite(suite.GenerationTesterMixin, unittest.TestCase):
    all_generative_model_classes = (QuietStarForCausalLM,)
    has_attentions = True
    model_tester = Tester()

    def setUp(self) -> None:
        set_seed(0)


def refused(test: Callable[[unittest.TestCase], None], complaint: str) -> Callable[[unittest.TestCase], None]:
    def run(self: unittest.TestCase) -> None:
        with pytest.raises((ValueError, TypeError, AttributeError), match=complaint) as error:
            test(self)
        assert "\n" not in str(error.value)

    return run


for name, complaint in REFUSED.items():
    setattr(TestTransformersSuite, name, refused(getattr(suite.GenerationTesterMixin, name), complaint))
