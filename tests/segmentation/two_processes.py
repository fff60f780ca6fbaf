"""Both segmenters in one process and in two; run by test_two_processes.py.

Usage: python two_processes.py FOLDER. Writes one.pth and two.pth, losses and gradients by model.
"""

import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Instances
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.engine.cli import load_config

CONFIGS = Path(__file__).parents[2] / "configs" / "emoji"
SMALL: dict[str, list[Any]] = {
    "catseg_untouched": [
        *("MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", -1, "MODEL.CAT_SEG.CLIP_SIZE", 48),
        *("MODEL.CAT_SEG.MASK_IGNORED", False),
    ],
    "ov_panoptic_untouched": [
        "MODEL.OV_PANOPTIC.NUM_QUERIES",
        8,
        "MODEL.OV_PANOPTIC.NUM_POINTS",
        64,
    ],
}
# Unlike in the two halves of the batch, since the masks of all processes are counted.
NUM_MASKS = (3, 2, 1, 0)
_rand = torch.rand


def make_model(name: str) -> nn.Module:
    words = {"stuff_classes": ["dog", "car", "sky"], "thing_classes": ["dog", "car", "sky"]}
    MetadataCatalog.get("words_of_two").set(**words)
    overrides: list[Any] = ["MODEL.CLIP.PRETRAINED", "", "MODEL.VOCABULARY.DATASET", "words_of_two"]
    overrides += ["MODEL.CLIP.PRECISION", "fp32"]
    torch.manual_seed(7)
    model: nn.Module = build_model(
        load_config(str(CONFIGS / f"{name}.yaml"), overrides + SMALL[name])
    )
    return model.train()


def make_items() -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(3)
    items = []
    for count in NUM_MASKS:
        instances = Instances((48, 48))
        instances.gt_classes = torch.arange(count)
        instances.gt_masks = BitMasks(_rand(count, 48, 48, generator=generator) < 0.5)
        items.append(
            {
                "image": torch.randint(0, 255, (3, 48, 48), generator=generator),
                "sem_seg": torch.randint(0, 3, (48, 48), generator=generator),
                "instances": instances,
            }
        )
    return items


def same_points(*size: int, device: torch.device | None = None) -> torch.Tensor:
    """Random points that are the same for every mask, however many a process has."""
    generator = torch.Generator().manual_seed(0)
    return _rand(1, *size[1:], generator=generator).expand(size).clone()


def learn(model: nn.Module, wrapped: nn.Module, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss and gradients of one step."""
    with patch.object(torch, "rand", same_points):
        losses = wrapped(items)
    # The weighted mean of the classes is each process's own, as published: not compared.
    loss = sum(value * ("loss_cls" not in name) for name, value in losses.items())
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    return {"loss": loss.detach(), "gradients": gradients}


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    results = {}
    for name in SMALL:
        model = make_model(name)
        # Without find_unused_parameters a parameter that gets no gradient would be an error.
        wrapped = DistributedDataParallel(model)
        result = learn(model, wrapped, make_items()[2 * rank : 2 * rank + 2])
        dist.all_reduce(result["loss"])
        result["loss"] /= 2
        results[name] = result
    if rank == 0:
        torch.save(results, folder / "two.pth")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    single = {}
    for key in SMALL:
        whole = make_model(key)
        single[key] = learn(whole, whole, make_items())
    torch.save(single, place / "one.pth")
    mp.spawn(work, args=(place,), nprocs=2)
