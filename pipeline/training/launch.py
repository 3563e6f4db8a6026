"""Training in one process, or in several that `accelerate launch` starts on this machine and, with others, on many."""

import logging
import os
import signal
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from accelerate.commands.launch import launch_command, launch_command_parser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler
from yaml import YAMLError

from pipeline.errors import UserError, first_line, reason
from pipeline.training.processes import SINGLE, has_lost_another, is_launched

SEVERAL = ("MULTI_GPU", "FSDP")  # of accelerate's types those that start processes by torchrun's means
LOST = 75  # the exit code of a process that another one has left alone
# where this machine is one of several: the same names as torchrun's and most clusters'
MACHINES = {"num_machines": "NNODES", "machine_rank": "NODE_RANK", "main_process_ip": "MASTER_ADDR"}
MACHINES |= {"main_process_port": "MASTER_PORT"}
NUMBERS = ("NNODES", "NODE_RANK", "MASTER_PORT")


def launch(launcher: str, module: str, stage: Callable[[], None]) -> None:
    """Run ``stage`` here or, in each of the processes that the file ``launcher`` describes, ``python -m module``.

    Raises UserError for a file that is none of accelerate's, and for a process that was killed. A process that ends
    with a message of its own ends this one with the same exit code.
    """
    if launcher == SINGLE:
        stage()
    elif is_launched():
        _run_one(stage)
    else:
        _run_all(launch_command_parser().parse_args([*_options(launcher), "-m", module, *sys.argv[1:]]))


def _run_one(stage: Callable[[], None]) -> None:
    """Run ``stage`` in one of several processes; it ends without a word where another one has, or at Ctrl-C.

    What it would have said is kept for the launcher, as all may have failed to reach each other.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # the launcher's to tell of
    try:
        stage()
    except RuntimeError as error:
        if not has_lost_another(error):
            raise
        get_error_handler().record_exception(error)
        sys.exit(LOST)


def _run_all(arguments: Namespace) -> None:
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # it would print a table of tracebacks
    try:
        launch_command(arguments)
    except ChildFailedError as error:
        codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
        for rank, code in codes.items():
            if code < 0 and code != -signal.SIGTERM:  # which the others are ended by
                raise UserError(
                    f"process {rank} was ended by signal {-code}: `dvc repro` goes on from the last checkpoint"
                ) from error
        told = [code for code in codes.values() if code > 0 and code != LOST]
        if told:
            sys.exit(told[0])
        raise UserError(
            f"the processes lost each other ({_first_words(error)}): `dvc repro` goes on from the last checkpoint"
        ) from error
    except SignalException as error:  # Ctrl-C, or DVC was killed
        sys.exit(128 + error.sigval)
    except Exception as error:  # accelerate checks no value: what one leads to may be raised anywhere
        raise UserError(f"{arguments.config_file} cannot be launched: {reason(error)}") from error


def _first_words(error: ChildFailedError) -> str:
    """What the process that failed first has recorded."""
    message = error.get_first_failure()[1].message
    return first_line(str(message["message"] if isinstance(message, dict) else message))


def _options(launcher: str) -> Iterator[str]:
    """`accelerate launch`'s options: the file, and what it leaves to each machine."""
    config = _config(launcher)
    machines = _machines(launcher, config)
    yield from ("--config_file", launcher)
    for option, variable in MACHINES.items():
        if variable in os.environ:
            yield from (f"--{option}", os.environ[variable])
    if "num_processes" not in config:
        yield from ("--num_processes", str(machines * torch.cuda.device_count()))


def _machines(launcher: str, config: dict) -> int:
    """How many machines there are. Raises UserError where that is no number, or nothing says where the first one is."""
    for variable in NUMBERS:
        value = os.environ.get(variable, "1")
        if not value.isdecimal():
            raise UserError(f"the environment variable {variable} is {value!r}, but must be a number")
    machines = os.environ.get("NNODES", config.get("num_machines", 1))
    if not str(machines).isdecimal() or int(machines) < 1:
        raise UserError(f"{launcher} is for {machines} machines (num_machines, NNODES), but must be for at least 1")
    machines = int(machines)
    if machines > 1 and not os.environ.get("MASTER_ADDR", config.get("main_process_ip")):
        raise UserError(f"{launcher} is for {machines} machines: set MASTER_ADDR to the first one's address on each")
    return machines


def _config(launcher: str) -> dict:
    if not Path(launcher).is_file():
        raise UserError(f"train.launcher is {launcher}, but must be single or a file such as launchers/node.yaml")
    try:
        config = OmegaConf.to_container(OmegaConf.load(launcher))
    except (YAMLError, OSError, ValueError, RecursionError, OmegaConfBaseException) as error:
        raise UserError(f"{launcher} is not readable YAML: {reason(error)}") from error
    if not isinstance(config, dict) or "distributed_type" not in config:
        raise UserError(f"{launcher} is no configuration for `accelerate launch`: it names no distributed_type")
    if config["distributed_type"] not in SEVERAL:
        raise UserError(
            f"{launcher} has distributed_type {config['distributed_type']}, but must have {' or '.join(SEVERAL)}: "
            "for one process set train.launcher to single"
        )
    if config.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # accelerate itself would have each process take a GPU
    if "num_processes" not in config and not torch.cuda.is_available():
        raise UserError(
            f"{launcher} runs a process a GPU, but no CUDA GPU is usable here: set train.launcher to single"
        )
    return config
