"""What is measured on: clocks, memory, names."""

import argparse
import platform
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
# dense bfloat16 operations a second that datasheets give, by a part of the device's name
DATASHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12}


def times(step: Callable[[], None], repeats: int, device: str) -> list[float]:
    """Seconds of each of ``repeats`` calls, after one that is not measured."""
    step()
    taken = []
    for _ in range(repeats):
        start = clock(device)
        step()
        taken.append(clock(device) - start)
    return taken


def clock(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def datasheet(options: argparse.Namespace) -> float | None:
    if options.device != "cuda":
        return None
    name = torch.cuda.get_device_name()
    return next((rate for part, rate in DATASHEET.items() if part in name), None)


def memory_now(device: str) -> int:
    """Bytes in use before there is a model: on a CPU the process with its libraries, on a GPU what is allocated."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    return peak_memory(device)


def peak_memory(device: str) -> int:
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    scale = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale


def machine(device: str) -> dict:
    """What was measured on."""
    name = torch.cuda.get_device_name() if device == "cuda" else processor()
    return {
        "device_name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
    }


def processor() -> str:
    """The processor's name as Linux gives it, else as Python does."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
