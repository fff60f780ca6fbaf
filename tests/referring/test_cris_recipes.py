from pathlib import Path

import pytest
import torch

from clipself_d2.data.datasets.refcoco import FAMILIES
from clipself_d2.engine.cli import load_config
from clipself_d2.referring import CrisDecoder, CrisNeck, CrisProjector
from clipself_d2.referring.cris import build_decoder

FOLDER = Path(__file__).parents[2] / "configs" / "cris"
RECIPES = sorted(path for path in FOLDER.glob("*.yaml") if not path.name.startswith("Base"))
EPOCHS, EPOCHS_AT_FULL_RATE = 50, 35


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_has_the_published_epochs_and_data(path):
    cfg = load_config(str(path), [])
    (train,) = cfg.DATASETS.TRAIN
    prefix = train.removesuffix("_train")
    family = FAMILIES[prefix]
    epoch = family.counts["train"] // cfg.SOLVER.IMS_PER_BATCH
    assert (EPOCHS * epoch,) == (cfg.SOLVER.MAX_ITER,)
    assert (EPOCHS_AT_FULL_RATE * epoch,) == cfg.SOLVER.STEPS
    assert tuple(f"{prefix}_{s}" for s in family.counts if s != "train") == cfg.DATASETS.TEST
    assert (22 if family.folder == "refcocog" else 17) == cfg.MODEL.CRIS.WORD_LEN
    assert cfg.SOLVER.OPTIMIZER == "Adam"
    assert f"output/cris/{path.stem.removeprefix('cris_')}" == cfg.OUTPUT_DIR


def test_there_is_a_recipe_for_every_published_row():
    names = {path.stem for path in RECIPES}
    for depth in (50, 101):
        for data in ("refcoco", "refcocoplus", "refcocog"):
            assert f"cris_r{depth}_{data}" in names


@pytest.mark.parametrize(("recipe", "heads"), [("cris/cris_r50_refcoco", 8), ("emoji/cris", 4)])
def test_a_decoder_has_the_heads_of_its_width(recipe, heads):
    cfg = load_config(str(FOLDER.parent / f"{recipe}.yaml"), [])
    layer = build_decoder(cfg, word_dim=512).layers[0]
    assert layer.self_attn.num_heads == layer.multihead_attn.num_heads == heads


@pytest.mark.parametrize(
    ("embed_dim", "neck", "projector"), [(1024, 24.14, 5.97), (512, 23.09, 4.79)]
)
def test_heads_have_the_published_sizes(embed_dim, neck, projector):
    with torch.device("meta"):
        parts = [
            CrisNeck(in_dims=(512, 1024, embed_dim), state_dim=embed_dim),
            CrisDecoder(),
            CrisProjector(state_dim=embed_dim),
        ]
    millions = [round(sum(p.numel() for p in part.parameters()) / 1e6, 2) for part in parts]
    assert millions == [neck, 12.63, projector]
