"""CRIS in one process and in two; run by test_cris_two_processes.py.

Usage: python cris_two_processes.py FOLDER. Writes one.pth and two.pth.
"""

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.data.referring_mapper import ReferringMapper
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer

ROOT = Path(__file__).parents[2]
PAIRS = 4


def read_config(folder: Path) -> CfgNode:
    overrides: list[Any] = ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", ""]
    overrides += ["MODEL.CLIP.PRECISION", "fp32", "MODEL.CRIS.NORM", "GN"]
    overrides += ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 1]
    overrides += ["MODEL.CRIS.DROPOUT", 0.0, "INPUT.REFER_SIZE", 32]
    overrides += ["DATALOADER.NUM_WORKERS", 0]
    overrides += ["OUTPUT_DIR", str(folder / "out")]
    return load_config(str(ROOT / "configs" / "emoji" / "cris.yaml"), overrides)


def make_items(cfg: CfgNode) -> list[dict[str, Any]]:
    mapper = ReferringMapper(cfg, is_train=True)
    records = DatasetCatalog.get("emoji_refer_train")[:PAIRS]
    return [mapper({**row, "sentence": row["sentences"][0]}) for row in records]


def make_model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(7)
    model: nn.Module = build_model(cfg)
    model.mask_threshold = 0.5
    return model


def learn(model: nn.Module, wrapped: nn.Module, items: list[dict[str, Any]]) -> dict[str, Any]:
    """Loss and gradients of one step."""
    wrapped.train()
    loss = wrapped(items)["loss_ref"]
    loss.backward()
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return {"loss": loss.detach(), "gradients": gradients}


def work(rank: int, folder: Path) -> None:
    store = f"file://{folder / 'store'}"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    cfg = read_config(folder)
    scores = Trainer.test(cfg, make_model(cfg))
    items = make_items(cfg)[rank * PAIRS // 2 : (rank + 1) * PAIRS // 2]
    model = make_model(cfg)
    result = learn(model, DistributedDataParallel(model), items)
    dist.all_reduce(result["loss"])
    result["loss"] /= 2
    if rank == 0:
        torch.save({**result, "scores": dict(scores)}, folder / "two.pth")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    place = Path(sys.argv[1])
    config = read_config(place)
    single = make_model(config)
    alone = Trainer.test(config, make_model(config))
    outcome = learn(single, single, make_items(config))
    torch.save({**outcome, "scores": dict(alone)}, place / "one.pth")
    mp.spawn(work, args=(place,), nprocs=2)
