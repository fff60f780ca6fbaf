"""What RegionCLIP's losses need of the rest of the batch: its other parts, and other processes.

Legend: R regions, K kept regions, M kept regions of the batch (or rows of all processes), N rows of
this process, or pictures of all of them, D joint embedding.
"""

from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_functional
from detectron2.utils import comm
from torch import Tensor

from clipself_d2.distillation.regionclip_losses import PseudoLabels, image_text_contrastive


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
    # all_gather takes equal shapes alone.
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


@dataclass(frozen=True)
class RegionTargets:
    """What regions learn.

    Attributes:
        labels: Pseudo labels of the regions.
        concepts_M: (M,) int64, concepts of all kept regions of the batch, in this process.
        mean: M, averaged over all processes.
    """

    labels: PseudoLabels
    concepts_M: Tensor
    mean: float | Tensor


@dataclass(frozen=True)
class PictureRows:
    """Pictures and captions of all processes, without gradient.

    Attributes:
        image_ND: Features of the pictures.
        text_ND: Embeddings of their captions.
        first: Row of the first of the part's own pictures.
        num_own: Rows of this process.
    """

    image_ND: Tensor
    text_ND: Tensor
    first: int
    num_own: int

    @classmethod
    def of_parts(cls, images: list[Tensor], texts: list[Tensor]) -> "list[PictureRows]":
        """Gather the rows of every part and process; every process must call it.

        Args:
            images: One (Ni, D) for each part of this process's batch.
            texts: Likewise.

        Returns:
            One for each part.
        """
        image_ND, text_ND = gather_rows(torch.cat(images)), gather_rows(torch.cat(texts))
        count = sum(len(rows) for rows in images)
        begin, found = first_row(count, image_ND.device), []
        for rows in images:
            found.append(cls(image_ND, text_ND, begin, count))
            begin += len(rows)
        return found

    def loss(self, own_ND: Tensor, temperature: float) -> Tensor:
        """Contrast all pictures and captions, with gradients for the part's own pictures.

        Args:
            own_ND: Features of the part's pictures.
            temperature: Divisor of the cosine.

        Returns:
            Scalar whose gradient is that of the loss of all rows, as far as it is the part's; its
            value is the part's share, so that those of all parts add up to the loss.
        """
        end = self.first + len(own_ND)
        image_ND = torch.cat([self.image_ND[: self.first], own_ND, self.image_ND[end:]])
        loss = image_text_contrastive(image_ND, self.text_ND, temperature)
        value = loss.detach() * len(own_ND) / self.num_own
        # DistributedDataParallel divides by the number of processes, of which only this one has
        # gradients for these rows.
        return value + comm.get_world_size() * (loss - loss.detach())


@dataclass(frozen=True)
class BatchShare:
    """What one part of a batch knows of the rest.

    Attributes:
        size: Height and width to which the pictures of the batch are padded, px.
        targets: What the part's regions learn; None without a region-level loss.
        rows: All pictures and captions; None without their loss.
    """

    size: tuple[int, int]
    targets: RegionTargets | None
    rows: PictureRows | None
