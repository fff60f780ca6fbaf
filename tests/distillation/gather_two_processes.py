"""The gathered image-text loss in two processes; run by test_gather.py.

Usage: python gather_two_processes.py FOLDER. Writes one.pt and <split>_<rank>.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from clipself_d2.distillation.gather import gather_rows
from clipself_d2.distillation.regionclip_losses import image_text_contrastive

# Rows of the first process of six.
SPLITS = {"uneven": 4, "even": 3, "one_is_empty": 6}


def make_batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    pictures = torch.randn(6, 5, generator=generator)
    return pictures, torch.randn(6, 8, generator=generator), torch.randn(5, 8, generator=generator)


def measure(pictures: Tensor, texts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    weight = weight.clone().requires_grad_()
    loss = image_text_contrastive(gather_rows(pictures @ weight), gather_rows(texts), 0.1)
    loss.backward()
    return loss.detach(), weight.grad


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    pictures, texts, weight = make_batch()
    for name, first in SPLITS.items():
        part = slice(0, first) if rank == 0 else slice(first, None)
        loss, gradient = measure(pictures[part], texts[part], weight)
        dist.all_reduce(gradient)
        torch.save({"loss": loss, "grad": gradient / 2}, folder / f"{name}_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found, slope = measure(*make_batch())
    torch.save({"loss": found, "grad": slope}, place / "one.pt")
    mp.spawn(work, args=(place,), nprocs=2)
