import math

import pytest
from detectron2.config import get_cfg
from omegaconf import OmegaConf

from clipself_d2.command_line.ranges import (
    _WORDS,
    FIELDS,
    RULES,
    check_fields,
    check_registered,
    check_values,
    name_fields,
    near_key,
)
from clipself_d2.engine.cli import load_config


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("SOLVER.MAX_ITER", -5),
        ("SOLVER.IMS_PER_BATCH", 0),
        ("SOLVER.BASE_LR", math.nan),
        ("INPUT.REGIONS.MAX_BOXES", 0),
        ("INPUT.REGIONS.IMAGE_SIZES", (0,)),
        ("INPUT.REGIONS.IMAGE_SIZES", ()),
        ("MODEL.PIXEL_MEAN", [math.nan, 1, 1]),
        ("MODEL.DISTILL.STUDENT_SHARE", 1.1),
        ("TEST.DETECTIONS_PER_IMAGE", 0),
        ("SOLVER.ADAM_BETAS", [0.9]),
        ("MODEL.META_ARCHITECTURE", "GeneralizedRCN"),
        ("MODEL.ANCHOR_GENERATOR.NAME", "HeldAnchors"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_key(key: str, value: object) -> None:
    cfg = get_cfg()
    check_values(cfg)
    cfg.merge_from_list([key, value])
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        check_values(cfg)


def test_the_tables_name_keys_that_exist() -> None:
    cfg = get_cfg()
    for key in {*RULES, *_WORDS, *FIELDS}:
        node = cfg
        for part in key.split("."):
            assert part in node, key
            node = node[part]


def test_a_word_is_answered_by_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"did you mean 'AdamW'\?"):
        load_config("", ["SOLVER.OPTIMIZER", "adamw"])
    with pytest.raises(ValueError, match=r"did you mean 'SOLVER\.MAX_ITER'\?"):
        load_config("", ["SOLVER.MAXITER", "5"])
    with pytest.raises(ValueError, match=r"did you mean 'emoji_ov_train'\?"):
        check_registered(["emoji_ov_trian"], "DATASETS.TRAIN")
    assert near_key("--resume", get_cfg()) == "; flags go before the keys"


def test_a_lazyconfig_is_told_by_its_fields() -> None:
    cfg = OmegaConf.create({"train": {"max_iter": 0, "device": "cpu"}})
    with pytest.raises(ValueError, match=r"train\.max_iter is 0; it is at least 1"):
        check_fields(cfg)
    cfg = OmegaConf.create({"dataloader": {"test": {"dataset": {"names": "emoji_ov_vla"}}}})
    with pytest.raises(ValueError, match=r"dataloader\.test\.dataset\.names.*emoji_ov_val"):
        check_fields(cfg)
    assert name_fields("check MODEL.WEIGHTS") == "check train.init_checkpoint"
