"""Start a stage in one process or, as `accelerate launch` does, in several, here and on other machines.

A command line (``cmd: ${train.launcher} -m stages.train``) would do, but ends in pages of tracebacks for any error.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import yaml
from accelerate.commands.launch import launch_command, launch_command_parser
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, get_error_handler

from pipeline.errors import UserError, first_line, reason
from pipeline.training.processes import SINGLE, has_lost_another, is_launched, number

SEVERAL = ("MULTI_GPU", "FSDP")  # the distributed_types with which accelerate starts processes as torchrun does
LOST = 75  # exit code of a process that failed only because another one had
# the options of `accelerate launch` that differ between machines, and the variables that torchrun and clusters set
MACHINE = {"num_machines": "NNODES", "machine_rank": "NODE_RANK", "main_process_ip": "MASTER_ADDR"}
MACHINE |= {"main_process_port": "MASTER_PORT"}


def launch(launcher: str, module: str, stage: Callable[[], None]) -> None:
    """Run ``stage`` here or, in each of the processes that the file ``launcher`` describes, ``python -m module``.

    Raises UserError for a file that accelerate cannot use, and where a process was killed. If a process fails with an
    error message of its own, this one ends with the same exit code.
    """
    if launcher == SINGLE:
        stage()
    elif is_launched():  # one of several processes, silent at Ctrl-C and when another process is lost
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        try:
            stage()
        except RuntimeError as error:
            if not has_lost_another(error):
                raise
            get_error_handler().record_exception(error)  # the launcher reports it if no process has a better reason
            sys.exit(LOST)
    else:
        name = f"{module.rpartition('.')[2]}.launcher"
        options = launch_command_parser().parse_args([*_options(launcher, name), "-m", module, *sys.argv[1:]])
        logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its table of tracebacks
        try:
            launch_command(options)
        except ChildFailedError as error:
            _explain(error)
        except SignalException as error:  # Ctrl-C, or DVC was killed
            sys.exit(128 + error.sigval)
        except Exception as error:  # accelerate checks no setting, so a bad one may raise anything anywhere
            raise UserError(f"{launcher} cannot be launched: {reason(error)}") from error


def _explain(error: ChildFailedError) -> None:
    """Raise UserError for a process that was killed; exit with the code of one that has printed why it failed."""
    codes = {rank: failure.exitcode for rank, failure in error.failures.items()}
    killed = [rank for rank, code in codes.items() if code < 0 and code != -signal.SIGTERM]  # SIGTERM: the launcher's
    printed = [code for code in codes.values() if code > 0 and code != LOST]
    if printed and not killed:
        sys.exit(printed[0])
    if killed:
        cause = f"process {killed[0]} was ended by signal {-codes[killed[0]]}"
    else:
        message = error.get_first_failure()[1].message
        first = first_line(str(message["message"] if isinstance(message, dict) else message))
        cause = f"the processes lost each other ({first})"
    raise UserError(f"{cause}: `dvc repro` resumes the run") from error


def _options(launcher: str, name: str) -> list[str]:
    """`accelerate launch`'s options: the file, and what the file leaves to the environment of each machine.

    ``name`` is the parameter that names the file. Raises UserError for what accelerate would not report in one line.
    """
    try:
        config = yaml.safe_load(Path(launcher).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{name} is {launcher}, but must be single or a file such as launchers/node.yaml") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{launcher} is not readable YAML: {reason(error)}") from error
    kind = config.get("distributed_type") if isinstance(config, dict) else None
    if kind not in SEVERAL:
        wanted = f"but must have {' or '.join(SEVERAL)}: for one process set {name} to single"
        raise UserError(f"{launcher} has distributed_type {kind}, {wanted}")
    if config.get("use_cpu"):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # else accelerate gives each process a GPU all the same
    options = ["--config_file", launcher]
    for option, variable in MACHINE.items():
        if variable in os.environ:
            value = os.environ[variable] if variable == "MASTER_ADDR" else number(variable)
            options += [f"--{option}", str(value)]
    machines = str(os.environ.get("NNODES", config.get("num_machines", 1)))
    if not machines.isdecimal() or int(machines) < 1:
        raise UserError(f"{launcher} is for {machines} machines (num_machines, NNODES), but must be for at least 1")
    if int(machines) > 1 and not os.environ.get("MASTER_ADDR", config.get("main_process_ip")):
        raise UserError(f"{launcher} is for {machines} machines: set MASTER_ADDR to the first one's address on each")
    if "num_processes" not in config:
        if not torch.cuda.is_available():
            told = f"{launcher} runs a process on each GPU, but no CUDA GPU is usable here"
            raise UserError(f"{told}: set {name} to single")
        options += ["--num_processes", str(int(machines) * torch.cuda.device_count())]
    return options
