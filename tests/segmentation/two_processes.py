"""CAT-Seg in one process and in two; run by test_two_processes.py.

Usage: python two_processes.py FOLDER. Writes one.pth and two.pth.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "emoji" / "catseg_untouched.yaml"


def make_model() -> nn.Module:
    MetadataCatalog.get("words_of_two").set(stuff_classes=["dog", "car", "sky"])
    overrides: list[Any] = ["MODEL.CLIP.PRETRAINED", "", "MODEL.VOCABULARY.DATASET", "words_of_two"]
    overrides += ["MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", -1, "MODEL.CAT_SEG.CLIP_SIZE", 48]
    overrides += ["MODEL.CLIP.PRECISION", "fp32", "MODEL.CAT_SEG.MASK_IGNORED", False]
    torch.manual_seed(7)
    model: nn.Module = build_model(load_config(str(CONFIG), overrides))
    return model.train()


def make_items() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    return [
        {
            "image": torch.randint(0, 255, (3, 48, 48), generator=generator),
            "sem_seg": torch.randint(0, 3, (48, 48), generator=generator),
        }
        for _ in range(4)
    ]


def learn(model: nn.Module, wrapped: nn.Module, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss and gradients of one step."""
    loss = wrapped(items)["loss_sem_seg"]
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), "gradients": gradients}


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    model = make_model()
    # Without find_unused_parameters a parameter that gets no gradient would be an error.
    wrapped = DistributedDataParallel(model)
    items = make_items()[2 * rank : 2 * rank + 2]
    result = learn(model, wrapped, items)
    dist.all_reduce(result["loss"])
    result["loss"] /= 2
    if rank == 0:
        torch.save(result, folder / "two.pth")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    single = make_model()
    torch.save(learn(single, single, make_items()), place / "one.pth")
    mp.spawn(work, args=(place,), nprocs=2)
