"""Quiet-STaR as an experiment pipeline. Importing it makes transformers' Auto classes know the trained model."""

from pipeline import errors  # before torch loads: it makes Ctrl-C quiet
from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

__all__ = ["QuietStarConfig", "QuietStarForCausalLM", "errors"]
