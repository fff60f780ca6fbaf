"""MODEL.CLIP read once, for every model."""

import logging

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from clipself_d2.config import add_clipself_config
from clipself_d2.engine.cli import load_config
from clipself_d2.parts.image_tower import (
    build_image_tower,
    build_vfm,
    check_pixels,
    load_original_tower,
    load_whole_clip,
)

MEAN, STD = [122.7709, 116.7460, 104.0937], [68.5005, 66.6322, 70.3232]


@pytest.fixture
def cfg() -> CfgNode:
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.INPUT.FORMAT = "RGB"
    cfg.MODEL.CLIP.NAME = "ViT-Ti-8-emoji"
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = MEAN, STD
    return cfg


def test_every_key_of_the_tower_is_set(cfg) -> None:
    clip = cfg.MODEL.CLIP
    clip.WINDOW_SIZE, clip.GLOBAL_BLOCKS, clip.DENSE_FORM = 4, [2], "attention"
    clip.ACTIVATION_CHECKPOINTING, clip.TRAINABLE_BLOCKS, clip.DROP_PATH = True, 2, 0.2
    clip.PRECISION = "bf16"
    tower = build_image_tower(cfg, reads_embedding=True)
    assert (tower.attention.window_size, tower.attention.global_blocks) == (4, (2,))
    assert (str(tower.dense_form), tower.checkpointing, tower.precision) == (
        "attention",
        True,
        "bf16",
    )
    assert (tower.trained_blocks, tower.drop_path) == (2, 0.2)
    trained = {name.split(".")[3] for name, p in tower.named_parameters() if p.requires_grad}
    assert trained == {"4", "5"}


def test_student_and_teacher_are_compiled_and_other_towers_say_that_they_are_not(
    cfg, caplog
) -> None:
    cfg.MODEL.CLIP.COMPILE = "blocks"
    original = load_original_tower(cfg)
    tower = build_image_tower(cfg, original=original, reads_embedding=True)
    assert original.compile_mode == tower.compile_mode == "blocks"
    assert tower.compiler is not original.compiler
    cfg.MODEL.CLIP.NAME = "convnext_base"
    with torch.device("meta"):
        build_image_tower(cfg, reads_embedding=True)
    assert "MODEL.CLIP.COMPILE blocks is for transformers; convnext_base runs" in caplog.text


def test_the_original_is_copied_not_shared(cfg) -> None:
    original = load_original_tower(cfg)
    cfg.MODEL.CLIP.TRAINABLE_BLOCKS = -1
    tower = build_image_tower(cfg, original=original, reads_embedding=True)
    pairs = zip(tower.parameters(), original.parameters(), strict=True)
    assert all(torch.equal(a, b) and a is not b for a, b in pairs)


def test_weights_replace_the_original(cfg, tmp_path) -> None:
    torch.manual_seed(1)
    other = load_original_tower(cfg)
    torch.save({"model": other.state_dict()}, tmp_path / "student.pth")
    cfg.MODEL.CLIP.WEIGHTS = str(tmp_path / "student.pth")
    tower = build_image_tower(cfg, original=load_original_tower(cfg), reads_embedding=True)
    assert torch.equal(tower.visual.proj, other.visual.proj)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("NAME", "ViT-B16", r"near: ViT-B-16.*check MODEL\.CLIP\.NAME"),
        ("WEIGHTS", "nowhere.pth", r"nowhere\.pth.*MODEL\.CLIP\.NAME, WEIGHTS"),
        ("DENSE_FORM", "none", r"form is 'none'.*DENSE_FORM"),
        ("TRAINABLE_BLOCKS", 7, r"7 trainable blocks.*TRAINABLE_BLOCKS"),
        ("DROP_PATH", 1.0, r"drop path is 1\.0.*DROP_PATH"),
    ],
)
def test_errors_name_the_key(cfg, key, value, message) -> None:
    cfg.MODEL.CLIP[key] = value
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_image_tower(cfg, reads_embedding=True)


def test_unused_keys_are_named_in_one_warning(cfg, caplog) -> None:
    cfg.MODEL.CLIP.TAP_BLOCKS, cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS = [1, 2], 1
    with caplog.at_level(logging.WARNING, logger="clipself_d2"):
        build_image_tower(cfg, reads_embedding=True)
        build_image_tower(cfg, reads_embedding=True, used=("TAP_BLOCKS", "TEXT_TRAINABLE_BLOCKS"))
    [record] = caplog.records
    assert "MODEL.CLIP.TAP_BLOCKS [1, 2] and MODEL.CLIP.TEXT_TRAINABLE_BLOCKS 1" in record.message


@pytest.mark.parametrize("recipe", ["clipself_patches", "region_text", "regionclip", "cris"])
@pytest.mark.parametrize(
    ("key", "value"), [("INPUT.FORMAT", "BGR"), ("MODEL.PIXEL_MEAN", [103.53, 116.28, 123.675])]
)
def test_every_method_refuses_bgr(emoji_cfg, tmp_path, recipe, key, value) -> None:
    cfg = emoji_cfg(recipe, key, value, "DATASETS.TRAIN", ("emoji_ov_train",))
    cfg.MODEL.REGIONCLIP.CONCEPTS = str(tmp_path / "concepts.txt")
    (tmp_path / "concepts.txt").write_text("dog,3\ncat,2\n")
    with pytest.raises(ValueError, match=r"trained on RGB"):
        build_model(cfg)


def test_foreign_pixels_are_told(cfg, caplog) -> None:
    tower = load_original_tower(cfg)
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [127.5] * 3, [127.5] * 3
    check_pixels(cfg, tower)
    assert "features will be poor unless MODEL.PIXEL_MEAN" in caplog.text
    cfg.MODEL.PIXEL_MEAN = [1.0]
    with pytest.raises(ValueError, match="give it three"):
        check_pixels(cfg, tower)


@pytest.mark.parametrize(("blocks", "expected"), [(0, 0), (2, 2), (-1, 12)])
def test_the_text_tower_follows_the_same_grammar(cfg, blocks, expected) -> None:
    cfg.MODEL.CLIP.TEXT_TRAINABLE_BLOCKS = blocks
    text = load_whole_clip(cfg).text
    trained = {name for name, p in text.named_parameters() if p.requires_grad}
    numbers = {name.split("resblocks.")[1].split(".")[0] for name in trained if "resblocks" in name}
    depth = len(text.clip.transformer.resblocks)
    assert len(numbers) == min(expected, depth)
    assert not any("logit_" in name for name in trained)
    assert ("clip.text_projection" in trained) == (blocks != 0)
    assert ("clip.token_embedding.weight" in trained) == (blocks == -1)


RECIPE = "configs/emoji/declip.yaml"


def test_the_keys_choose_the_vision_foundation_model() -> None:
    assert build_vfm(load_config(RECIPE, [])).patch_size == 8


@pytest.mark.parametrize(("key", "value"), [("NAME", "dinov9"), ("WEIGHTS", "no.pth")])
def test_errors_of_the_vision_foundation_model_name_the_keys(key, value) -> None:
    cfg = load_config(RECIPE, [f"MODEL.VFM.{key}", value])
    with pytest.raises((ValueError, FileNotFoundError), match=r"check MODEL\.VFM\.NAME and WEI"):
        build_vfm(cfg)
