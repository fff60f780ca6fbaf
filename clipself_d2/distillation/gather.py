"""Features of all processes with gradients through them.

Legend: N rows of this process, M rows of all processes, D width.
"""

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from detectron2.utils import comm
from torch import Tensor


def gather_rows(rows_ND: Tensor) -> Tensor:
    """Join the rows of all processes; every process must call it.

    Args:
        rows_ND: Rows of this process; N may differ between processes, and be 0.

    Returns:
        (M, D), in the order of the processes. The backward pass adds up what all processes send
        back, so that a loss of all rows that every process computes has, after
        DistributedDataParallel's mean, the gradient of one process with all rows.

    Reference: RegionCLIP, arXiv 2112.09106, section 3.2. Differs: the published code cuts every
    process to the smallest number of rows.
    """
    if comm.get_world_size() == 1:
        return rows_ND
    counts = _counts(len(rows_ND), rows_ND.device)
    missing = rows_ND.new_zeros(max(counts) - len(rows_ND), *rows_ND.shape[1:])
    padded = torch.cat([rows_ND, missing])
    parts = dist_functional.all_gather(padded)  # type: ignore[no-untyped-call]
    return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])


def first_row(count: int, device: torch.device) -> int:
    """Find where the rows of this process begin in what ``gather_rows`` joins.

    Args:
        count: Number of rows of this process; every process must call it.
        device: Device of the rows.

    Returns:
        The number of rows of the processes before.
    """
    return sum(_counts(count, device)[: comm.get_rank()]) if comm.get_world_size() > 1 else 0


def _counts(count: int, device: torch.device) -> list[int]:
    mine = torch.tensor([count], device=device)
    found = [torch.zeros_like(mine) for _ in range(comm.get_world_size())]
    dist.all_gather(found, mine)
    return [int(each) for each in found]
