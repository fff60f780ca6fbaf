"""Every published panoptic recipe: its numbers, and a step and a picture with a small tower."""

from pathlib import Path

import pytest
import torch
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model

from clipself_d2.engine.cli import load_config
from clipself_d2.engine.trainer import Trainer

CONFIGS = Path(__file__).parents[2] / "configs"
LEAVES = sorted((CONFIGS / "panoptic").glob("ov_*.yaml"))


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_the_schedule_is_the_published_one(path: Path) -> None:
    cfg = load_config(str(path), [])
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER) == (16, 368_750)
    assert solver.STEPS == (327_778, 355_092)
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.CLIP_GRADIENTS.CLIP_VALUE) == (
        1e-4,
        0.05,
        0.01,
    )
    masks = cfg.MODEL.OV_PANOPTIC
    assert (masks.NUM_QUERIES, masks.NUM_LAYERS, masks.NUM_POINTS) == (250, 9, 12_544)
    assert path.stem in cfg.OUTPUT_DIR
    distilled = "clipself" in path.stem
    assert bool(cfg.MODEL.CLIP.WEIGHTS) is distilled


@pytest.mark.slow
@pytest.mark.parametrize("path", LEAVES, ids=lambda path: path.stem)
def test_every_recipe_takes_a_step_and_segments(path: Path, emoji_data, tmp_path) -> None:
    cfg = load_config(str(path), [])
    taps = [1, 3, 4, 5]
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.CLIP.WEIGHTS", "", "MODEL.CLIP.PRETRAINED", ""]
        + ["MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "MODEL.CLIP.TAP_BLOCKS", taps]
        + ["MODEL.CLIP.PRECISION", "fp32", "MODEL.VOCABULARY.CACHE_DIR", ""]
        + ["MODEL.VOCABULARY.TEMPLATES", "single", "INPUT.LSJ_SIZE", 96]
        + ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 96]
        + ["MODEL.RESNETS.RES2_OUT_CHANNELS", 32, "MODEL.SEM_SEG_HEAD.CONVS_DIM", 32]
        + ["MODEL.OV_PANOPTIC.NUM_QUERIES", 8, "MODEL.OV_PANOPTIC.NUM_POINTS", 64]
        + ["DATASETS.TRAIN", ("emoji_ov_panoptic_train",), "SOLVER.AMP.ENABLED", False]
        + ["DATASETS.TEST", ("emoji_ov_panoptic_val",), "DATALOADER.NUM_WORKERS", 0]
        + ["SOLVER.IMS_PER_BATCH", 2, "OUTPUT_DIR", str(tmp_path)]
    )
    torch.manual_seed(0)
    model = build_model(cfg)
    optimizer = Trainer.build_optimizer(cfg, model)
    losses = model.train()(next(iter(Trainer.build_train_loader(cfg))))
    sum(losses.values()).backward()
    before = model.decoder.query_content.weight.clone()
    optimizer.step()
    assert not torch.equal(before, model.decoder.query_content.weight)
    item = next(iter(build_detection_test_loader(cfg, "emoji_ov_panoptic_val")))
    with torch.no_grad():
        output = model.eval()(item)[0]
    assert set(output) == {"panoptic_seg", "sem_seg", "instances"}
