"""Where a model runs, and how its process keeps memory."""

import ctypes
import sys

import torch

from pipeline.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_memory() -> None:
    """Tell glibc to keep freed memory in the process instead of returning it; elsewhere do nothing.

    By default glibc maps and unmaps every large buffer, and page faults then take more time than the arithmetic: a
    6656 x 256 x 32000 product went from 2118 to 748 ms with this on a 2-core CPU.
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def pick_device(device: str) -> str:
    """``cuda`` or ``cpu``, from those or ``auto``. Raises UserError where a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but no CUDA GPU is usable here: set it to auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
