"""The stages' commands. A stage that DVC runs ends when DVC is killed, so that it can be run again at once.

Linux is asked here, before libraries load, to send SIGTERM then: a stage whose DVC dies earlier would not hear of it.
`exec` in dvc.yaml leaves no shell between DVC and the stage, as some shells stay.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if sys.platform.startswith("linux") and "DVC_STAGE" in os.environ:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
