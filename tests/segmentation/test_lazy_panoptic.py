"""The lazy face of the panoptic model builds what the yaml builds."""

from pathlib import Path

import torch
from detectron2.config import LazyConfig
from detectron2.modeling import build_model

from clipself_d2.engine.cli import load_config
from clipself_d2.engine.lazy import build_lazy_model

CONFIGS = Path(__file__).parents[2] / "configs"


def shapes(model: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_both_faces_build_the_same_model(emoji_data) -> None:
    lazy = LazyConfig.load(str(CONFIGS / "lazy" / "ov_panoptic_coco_vitb16.py"))
    lazy = LazyConfig.apply_overrides(
        lazy,
        ["shared.clip=ViT-Ti-8-emoji", "shared.weights=null", "shared.templates=single"]
        + ["shared.cache_dir=null", "shared.classes_of=emoji_ov_panoptic_train"]
        + ["model.backbone.backbone.tap_blocks=[1,3,4,5]", "model.decoder.embed_dim=128"],
    )
    cfg = load_config(str(CONFIGS / "panoptic" / "ov_panoptic_untouched_eva02_b16.yaml"), [])
    cfg.merge_from_list(
        ["MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", "ViT-Ti-8-emoji", "MODEL.CLIP.PRETRAINED", ""]
        + ["MODEL.CLIP.TAP_BLOCKS", [1, 3, 4, 5], "MODEL.VOCABULARY.CACHE_DIR", ""]
        + ["MODEL.VOCABULARY.TEMPLATES", "single"]
        + ["DATASETS.TRAIN", ("emoji_ov_panoptic_train",)]
    )
    by_yaml, by_lazy = build_model(cfg), build_lazy_model(lazy)
    assert shapes(by_lazy) == shapes(by_yaml)
    for name in ("clip_scores", "loss", "merging", "tasks"):
        assert getattr(by_lazy, name) == getattr(by_yaml, name), name
    assert torch.equal(by_lazy.pixel_mean, by_yaml.pixel_mean)
    assert by_lazy.classifier.scale == by_yaml.classifier.scale
