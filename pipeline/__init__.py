"""Quiet-STaR as an experiment pipeline. Importing it makes transformers' Auto classes know the trained model."""

from pipeline import errors  # before torch loads: it makes Ctrl-C quiet

# isort: split
from transformers import AutoConfig, AutoModelForCausalLM

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

# here, as the copy of the thought package in a released folder must not register a second model of this name
AutoConfig.register(QuietStarConfig.model_type, QuietStarConfig)
AutoModelForCausalLM.register(QuietStarConfig, QuietStarForCausalLM)

__all__ = ["QuietStarConfig", "QuietStarForCausalLM", "errors"]
