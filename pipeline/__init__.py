"""Quiet-STaR as an experiment pipeline. Importing it makes transformers' Auto classes know the trained model."""

from pipeline import errors  # before torch loads: it makes Ctrl-C quiet

if not errors.is_command:  # a command loads torch and transformers only if it needs them: that takes seconds
    from pipeline.models.auto import QuietStarConfig, QuietStarForCausalLM

    __all__ = ["QuietStarConfig", "QuietStarForCausalLM", "errors"]
