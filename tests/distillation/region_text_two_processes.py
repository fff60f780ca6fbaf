"""The classes that regions are scored against, in one process and in two.

Usage: python region_text_two_processes.py FOLDER. Writes one.pt, 0.pt and 1.pt.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from clipself_d2.clip import load_tower
from clipself_d2.distillation import RegionTextDistiller
from clipself_d2.distillation.base import Towers


def learn(items: list[dict[str, object]], parallel: bool) -> dict[str, object]:
    torch.manual_seed(0)
    student, teacher = (load_tower("ViT-Ti-8-emoji") for _ in range(2))
    student.freeze(1)
    pixels = {"pixel_mean": teacher.pixel_mean, "pixel_std": teacher.pixel_std}
    model = RegionTextDistiller(
        towers=Towers(student=student, teacher=teacher, **pixels),
        text_KD=torch.randn(40, 128, generator=torch.Generator().manual_seed(3)),
        scale=20.0,
        num_sampled=12,
    ).train()
    wrapped = DistributedDataParallel(model) if parallel else model
    loss = wrapped(items)["loss_region_text"]
    loss.backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "grads": grads}


def make_items() -> list[dict[str, object]]:
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor([[0.0, 0, 24, 24], [16.0, 8, 48, 40]])
    return [
        {
            "image": torch.randint(0, 255, (3, 48, 64), generator=generator, dtype=torch.uint8),
            "boxes": box,
            "region_classes": torch.randint(0, 40, (2,), generator=generator),
        }
        for _ in range(4)
    ]


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    torch.save(learn(make_items()[rank::2], parallel=True), folder / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    torch.save(learn(make_items(), parallel=False), place / "one.pt")
    mp.spawn(work, args=(place,), nprocs=2)
