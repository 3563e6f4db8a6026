"""Quiet-STaR as an experiment pipeline. Importing it makes transformers' Auto classes know the trained model."""

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

__all__ = ["QuietStarConfig", "QuietStarForCausalLM"]
