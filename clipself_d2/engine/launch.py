"""Starting the processes of a run: by Detectron2, by torchrun, or by Slurm."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed
from detectron2.engine import launch
from detectron2.utils import comm

TIMEOUT = timedelta(minutes=30)
# What torchrun sets; tools/slurm_train.sh sets the same from Slurm's variables.
_RUNNER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@dataclass(frozen=True)
class RunnerProcess:
    """Place of this process among those that a runner has started.

    Attributes:
        rank: Number among all processes.
        world_size: Number of processes.
        local_rank: Number on this machine.
        local_world_size: Processes on this machine.
    """

    rank: int
    world_size: int
    local_rank: int
    local_world_size: int


def find_runner(environment: Mapping[str, str]) -> RunnerProcess | None:
    """Tell whether torchrun, or a script that acts like it, started this process.

    Args:
        environment: Variables of the process.

    Returns:
        Its place, or None where the tool is to start processes itself.

    Raises:
        ValueError: If only some of the variables are set, or one is no number.
    """
    if "MASTER_ADDR" not in environment or "RANK" not in environment:
        return None
    absent = [name for name in _RUNNER_VARIABLES if not environment.get(name, "").isdigit()]
    if absent:
        raise ValueError(
            f"MASTER_ADDR and RANK are set, as torchrun does, but {', '.join(absent)} is missing "
            "or no number; start with torchrun, or unset them to use --num-gpus"
        )
    return RunnerProcess(*(int(environment[name]) for name in _RUNNER_VARIABLES))


def run_processes(
    action: Callable[..., object],
    args: tuple[object, ...],
    *,
    num_gpus: int,
    num_machines: int,
    machine_rank: int,
    dist_url: str,
) -> None:
    """Run a function in every process of a run.

    Args:
        action: What each process does.
        args: Its arguments.
        num_gpus: Processes on this machine, where no runner has started them.
        num_machines: Number of machines.
        machine_rank: Number of this machine.
        dist_url: Where the processes meet, "auto" on one machine.
    """
    place = find_runner(os.environ)
    if place is None:
        launch(
            action,
            num_gpus,
            num_machines=num_machines,
            machine_rank=machine_rank,
            dist_url=dist_url,
            args=args,
        )
        return
    join_group(place)
    try:
        action(*args)
    finally:
        torch.distributed.destroy_process_group()


def join_group(place: RunnerProcess) -> None:
    """Meet the other processes of a runner and set up Detectron2's groups.

    Args:
        place: Place of this process.
    """
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(place.local_rank)
    torch.distributed.init_process_group("nccl" if has_gpu else "gloo", timeout=TIMEOUT)
    comm.create_local_process_group(place.local_world_size)
    comm.synchronize()
