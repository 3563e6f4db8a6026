"""Quiet-STaR as an experiment pipeline. Importing it makes transformers' Auto classes know the trained model."""

import os
import signal
import sys

if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # one of the commands is being started: Ctrl-C ends it quietly until `pipeline.errors` takes that over
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))

from pipeline.thought.model import QuietStarConfig, QuietStarForCausalLM

__all__ = ["QuietStarConfig", "QuietStarForCausalLM"]
