"""The stages' commands. One that DVC runs ends when DVC is killed, and can be run again at once.

Linux sends it a signal then. It is asked for here, before libraries are loaded, as a stage whose DVC died before that
would not hear of it; and `exec` in dvc.yaml leaves no shell between the two, as some shells stay.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if sys.platform.startswith("linux") and "DVC_STAGE" in os.environ:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
