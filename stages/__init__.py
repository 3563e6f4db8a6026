"""The stages' commands. One that DVC runs ends when DVC is killed, and can be run again at once.

Linux sends it a signal then. It is asked for here, before libraries are loaded, as a stage whose DVC died before that
would not hear of it; and `exec` in dvc.yaml leaves no shell between the two, as some shells stay. For the same reason
Ctrl-C is given its quiet end here: `pipeline.errors` takes it over once there is something to leave in order.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1
INTERRUPTED = 130  # the exit code that a shell gives a command that Ctrl-C has ended

if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else who started this wants it ignored
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))

if sys.platform.startswith("linux") and "DVC_STAGE" in os.environ:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
