"""The gathered image-text loss in two processes; run by test_regionclip_batch.py.

Usage: python gather_two_processes.py FOLDER. Writes one.pt, <split>_<rank>.pt, and the same in
parts: <split>_parts_<rank>.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from clipself_d2.distillation.regionclip_batch import PictureRows, gather_rows
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


def measure_in_parts(pictures: Tensor, texts: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The same loss where a process works through its rows in two parts."""
    weight = weight.clone().requires_grad_()
    images = [part @ weight.detach() for part in pictures.tensor_split(2)]
    rows = PictureRows.of_parts(images, list(texts.tensor_split(2)))
    total = torch.zeros(())
    for row, part in zip(rows, pictures.tensor_split(2), strict=True):
        loss = row.loss(part @ weight, 0.1)
        loss.backward()
        total += loss.detach()
    return total, weight.grad


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    pictures, texts, weight = make_batch()
    for name, first in SPLITS.items():
        part = slice(0, first) if rank == 0 else slice(first, None)
        for suffix, function in (("", measure), ("_parts", measure_in_parts)):
            if suffix and name == "one_is_empty":
                continue
            loss, gradient = function(pictures[part], texts[part], weight)
            dist.all_reduce(gradient)
            torch.save({"loss": loss, "grad": gradient / 2}, folder / f"{name}{suffix}_{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    found, slope = measure(*make_batch())
    torch.save({"loss": found, "grad": slope}, place / "one.pt")
    mp.spawn(work, args=(place,), nprocs=2)
