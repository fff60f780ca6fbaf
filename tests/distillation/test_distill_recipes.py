"""Every recipe of configs/distill builds and takes a step, shrunk or at its own size."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode

from clipself_d2.engine.cli import load_config
from clipself_d2.engine.distill_trainer import DistillTrainer

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "configs" / "distill"
RECIPES = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("Base-"))
SMALL = ["INPUT.REGIONS.IMAGE_SIZES", (112,), "INPUT.REGIONS.MAX_BOXES", 3, "DATASETS.TEST", ()]
SMALL += ["SOLVER.IMS_PER_BATCH", 1, "SOLVER.MAX_ITER", 1, "DATALOADER.NUM_WORKERS", 0]
SMALL += ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", "", "MODEL.DEVICE", "cpu"]
PUBLISHED = [
    f"{kind}_{tower}"
    for kind in ("clipself_coco_patches", "clipself_coco_proposals", "clipself_lvis_patches")
    + ("region_text_coco",)
    for tower in ("eva02_b16", "eva02_l14_336")
]


def shrink(name: str, root: Path, output: Path, *overrides: object) -> CfgNode:
    cfg = load_config(str(FOLDER / f"{name}.yaml"), [])
    terms = [dict(row) for row in cfg.MODEL.DISTILL.TERMS]
    labelled = cfg.INPUT.REGIONS.SOURCE == "labels" or any(row["loss"] == "map" for row in terms)
    train = "emoji_ov_train" if labelled else "emoji_train_images"
    proposals = str(root / "emoji" / "annotations" / "instances_train_base.json")
    cfg.merge_from_list([*SMALL, "DATASETS.TRAIN", (train,), "OUTPUT_DIR", str(output)])
    cfg.merge_from_list(
        ["INPUT.REGIONS.PROPOSAL_FILE", proposals, "MODEL.VOCABULARY.CACHE_DIR", ""]
    )
    for row in terms:
        # The larger teacher is a small one with random weights.
        row.update({"clip": "ViT-Ti-8-emoji", "pretrained": ""} if "clip" in row else {})
    vfm = ["MODEL.VFM.NAME", "tiny", "MODEL.VFM.WEIGHTS", "", "MODEL.DISTILL.TERMS", terms]
    if cfg.MODEL.VOCABULARY.DATASET:
        vfm += ["MODEL.VOCABULARY.DATASET", "emoji_ov_sem_seg_val"]
    cfg.merge_from_list([*vfm, *overrides])
    return cfg


def step(cfg: CfgNode) -> None:
    trainer = DistillTrainer(cfg)
    trainer.train()
    saved = torch.load(Path(cfg.OUTPUT_DIR) / "model_final.pth", weights_only=True)["model"]
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_every_published_row_has_a_recipe() -> None:
    assert set(PUBLISHED) <= set(RECIPES)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step_with_the_embedded_clip(name: str, emoji_data, tmp_path) -> None:
    """Recipes of other towers than EVA02-B, which take the same step here, are only built."""
    tiny = ("MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "MODEL.CLIP.TRAINABLE_BLOCKS", 6)
    cfg = shrink(name, emoji_data, tmp_path, *tiny, "MODEL.VOCABULARY.TEMPLATES", "single")
    if "eva02_b16" in name:
        step(cfg)
    else:
        assert DistillTrainer.build_optimizer(cfg, DistillTrainer.build_model(cfg)).param_groups


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_takes_a_step_with_its_own_tower(name: str, emoji_data, tmp_path) -> None:
    step(shrink(name, emoji_data, tmp_path, "MODEL.VOCABULARY.TEMPLATES", "single"))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_row_has_the_published_numbers(name: str) -> None:
    cfg = load_config(str(FOLDER / f"{name}.yaml"), [])
    large = name.endswith("l14_336")
    distill, regions, solver = cfg.MODEL.DISTILL, cfg.INPUT.REGIONS, cfg.SOLVER
    size, alpha, blocks = (896, 0.95, 24) if large else (1024, 0.7, 12)
    iterations = 37566 if "lvis" in name else 44358
    assert ((size,), alpha, blocks) == (
        regions.IMAGE_SIZES,
        distill.STUDENT_SHARE,
        cfg.MODEL.CLIP.TRAINABLE_BLOCKS,
    )
    schedule = (solver.MAX_ITER, solver.CHECKPOINT_PERIOD)
    assert schedule == (iterations, iterations // 6)
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, solver.WARMUP_ITERS) == (1e-5, 0.1, 1000)
    assert (solver.IMS_PER_BATCH, regions.MAX_BOXES) == (16, 20)
    assert distill.PAD_TO_SQUARE
    assert list(solver.ADAM_BETAS) == [0.9, 0.999]


def test_methods_beyond_clipself_have_their_published_numbers() -> None:
    def read(name: str) -> CfgNode:
        return load_config(str(FOLDER / f"{name}.yaml"), [])

    weights = {
        "declip_coco_eva02_b16": (2.0, 0.05),
        "declip_coco_eva02_l14_336": (2.0, 0.05),
        "synclip_coco_eva02_b16": (1.0, 0.25, 0.1),
        "synclip_coco_eva02_l14_336": (2.0, 0.05, 0.1),
        "denserc_coco_eva02_b16": (1.0, 0.025),
        "denserc_coco_eva02_l14_336": (1.0, 0.025),
    }
    for name, expected in weights.items():
        cfg = read(name)
        assert tuple(row.get("weight", 1.0) for row in cfg.MODEL.DISTILL.TERMS) == expected
        sizes = {"denserc": (896,) if "l14" in name else (1024,)}.get(name.split("_")[0], (560,))
        assert tuple(cfg.INPUT.REGIONS.IMAGE_SIZES) == sizes
        assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (44358, 1e-5)
    dense = read("densevlm_coco_eva02_b16")
    assert (dense.SOLVER.IMS_PER_BATCH, dense.MODEL.DISTILL.STUDENT_SHARE) == (64, 0.9)
