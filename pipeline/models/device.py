"""Pick the device and its precision, and keep glibc from returning memory to the system."""

import ctypes
import sys

import torch

from pipeline.errors import UserError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
LARGEST_INT = 2**31 - 1


def keep_memory() -> None:
    """Make glibc keep freed memory in the process; without glibc, do nothing.

    By default glibc maps and unmaps every large buffer, and page faults then take more time than the arithmetic: a
    6656 x 256 x 32000 product went from 2118 to 748 ms with this on a 2-core CPU.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform.startswith("linux") else None
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST_INT)


def autocast(device: str, precision: str) -> torch.autocast:
    """A context in which matrix products run in ``precision``, float32 or bfloat16."""
    return torch.autocast(device, torch.bfloat16, enabled=precision == "bfloat16")


def pick_device(device: str) -> str:
    """Return ``cuda`` or ``cpu`` for cuda, cpu or auto. Raises UserError for cuda without a usable GPU."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but no CUDA GPU is usable here: set it to auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
