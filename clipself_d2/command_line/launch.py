"""Starting the processes of a run: by Detectron2, by torchrun, or by Slurm."""

import argparse
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta

import torch
import torch.distributed
from detectron2.engine import launch
from detectron2.utils import comm
from torch.multiprocessing import ProcessExitedException

TIMEOUT = timedelta(minutes=30)
# What torchrun sets; tools/slurm_train.sh sets the same from Slurm's variables.
_RUNNER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


def find_runner(environment: Mapping[str, str]) -> tuple[int, int] | None:
    """Tell whether torchrun, or a script that acts like it, started this process.

    Gives its number on this machine and the number of processes there, or None where the tool is to
    start processes itself; a ValueError says that only some of the variables are set, or one is no
    number.
    """
    if "MASTER_ADDR" not in environment or "RANK" not in environment:
        return None
    absent = [name for name in _RUNNER_VARIABLES if not environment.get(name, "").isdigit()]
    if absent:
        raise ValueError(
            f"MASTER_ADDR and RANK are set, as torchrun does, but {', '.join(absent)} is missing "
            "or no number; start with torchrun, or unset them to use --num-gpus"
        )
    return int(environment["LOCAL_RANK"]), int(environment["LOCAL_WORLD_SIZE"])


def _check_places(flags: argparse.Namespace) -> None:
    """Refuse machines and GPUs that are not there."""
    if flags.machine_rank >= flags.num_machines:
        raise ValueError(
            f"--machine-rank is {flags.machine_rank}, not below --num-machines {flags.num_machines}"
        )
    if torch.cuda.is_available() and flags.num_gpus > torch.cuda.device_count():
        found = torch.cuda.device_count()
        raise ValueError(f"--num-gpus is {flags.num_gpus}, but there are {found} GPUs here")


def run_processes(action: Callable[..., object], args: tuple, flags: argparse.Namespace) -> None:
    """Run an importable function in every process of a run.

    The flags are Detectron2's, for where no runner has started the processes. A SystemExit has the
    exit code of a process that failed and has said why.
    """
    place = find_runner(os.environ)
    if place is None:
        _check_places(flags)
        machines = (flags.num_machines, flags.machine_rank, flags.dist_url)
        try:
            launch(action, flags.num_gpus, *machines, args=args)
        except ProcessExitedException as end:
            # It has said why; a process that a signal killed has a negative code.
            sys.exit(end.exit_code if end.exit_code > 0 else 128 - end.exit_code)
        except KeyboardInterrupt as stop:
            # A shell tells every process, but others may know the number of this one alone.
            children = multiprocessing.active_children()
            for child in children:
                os.kill(child.pid or 0, getattr(stop, "signum", signal.SIGINT))
            # They are saving.
            for child in children:
                child.join()
            raise
        return
    local_rank, local_world_size = place
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(local_rank)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=TIMEOUT)
    comm.create_local_process_group(local_world_size)
    comm.synchronize()
    try:
        action(*args)
    finally:
        torch.distributed.destroy_process_group()
