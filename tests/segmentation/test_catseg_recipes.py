"""The recipes: published schedule, and each builds at reduced size and takes a step."""

from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model

from clipself_d2.engine.cli import load_config

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(
    path for path in CONFIGS.glob("coco_stuff/*.yaml") if not path.name.startswith("Base")
)
EMOJI = sorted(CONFIGS.glob("emoji/catseg_*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_published_schedule(path):
    cfg = load_config(str(path), [])
    assert (cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.MAX_ITER) == (4, 80000)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.BACKBONE_MULTIPLIER) == (0.0002, 0.01)
    assert (cfg.SOLVER.OPTIMIZER, cfg.SOLVER.WEIGHT_DECAY) == ("AdamW", 0.0001)
    assert cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE == 0.01
    assert (336 if "l14" in path.stem else 384) == cfg.MODEL.CAT_SEG.CLIP_SIZE
    assert bool(cfg.MODEL.CLIP.WEIGHTS) == ("clipself" in path.stem)
    # Distilled weights are read as they were distilled.
    if "clipself" in path.stem or "eva02" in path.stem:
        assert cfg.MODEL.CLIP.DENSE_FORM == "clipself"
    assert f"output/catseg/{path.stem.removeprefix('catseg_')}" == cfg.OUTPUT_DIR


@pytest.mark.slow
@pytest.mark.parametrize("path", [*RECIPES, *EMOJI], ids=lambda path: path.stem)
def test_a_recipe_builds_and_takes_a_step(path, labelled, items):
    cfg = load_config(
        str(path),
        ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
        + ["MODEL.VOCABULARY.CACHE_DIR", ""],
    )
    patch = 14 if "l14" in path.stem else 16
    cfg.merge_from_list(
        ["DATASETS.TRAIN", (labelled,), "MODEL.CAT_SEG.CLIP_SIZE", 6 * patch]
        + ["MODEL.CAT_SEG.WINDOW_SIZE", 96, "MODEL.CAT_SEG.CANVAS_SIZE", 0]
    )
    torch.manual_seed(0)
    model = build_model(cfg).train()
    loss = sum(model(items).values())
    loss.backward()
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert missing == []
    assert loss.isfinite()
    with torch.no_grad():
        assert model.eval()(items[:1])[0]["sem_seg"].shape == (5, 50, 70)
