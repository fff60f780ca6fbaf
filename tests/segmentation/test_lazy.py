"""The LazyConfigs and the yaml files build the same models."""

from pathlib import Path

import open_clip
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.modeling import build_model

from clipself_d2.engine.cli import load_config
from clipself_d2.engine.lazy import build_lazy_model
from clipself_d2.engine.solver import optimizer_params_from_cfg

CONFIGS = Path(__file__).parents[2] / "configs"


def test_both_faces_build_the_same_model_and_rates(labelled, monkeypatch):
    yaml = load_config(
        str(CONFIGS / "coco_stuff" / "catseg_openai_b16.yaml"),
        ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu", "MODEL.VOCABULARY.CACHE_DIR", ""],
    )
    yaml.merge_from_list(["DATASETS.TRAIN", (labelled,)])
    lazy = LazyConfig.load(str(CONFIGS / "lazy" / "catseg_coco_stuff_vitb16.py"))
    lazy.shared.weights, lazy.shared.train = None, labelled
    assert lazy.shared.templates == yaml.MODEL.VOCABULARY.TEMPLATES
    # Towers of this size take seconds to make, and eighty prompts through them minutes.
    assert lazy.shared.clip == yaml.MODEL.CLIP.NAME
    lazy.shared.clip = yaml.MODEL.CLIP.NAME = "ViT-Ti-8-emoji"
    width = open_clip.get_model_config("ViT-B-16-quickgelu")["embed_dim"]
    assert lazy.model.aggregator.embed_dim == width
    lazy.model.aggregator.embed_dim = 128
    lazy.shared.templates = yaml.MODEL.VOCABULARY.TEMPLATES = "single"
    torch.manual_seed(0)
    first, second = build_model(yaml), instantiate(lazy.model)
    assert repr(first) == repr(second)
    assert first.options == second.options
    assert first.tower.dense_form == second.tower.dense_form
    assert first.words.templates == second.words.templates
    pairs = [(n, p.shape, p.requires_grad) for n, p in first.named_parameters()]
    assert pairs == [(n, p.shape, p.requires_grad) for n, p in second.named_parameters()]
    lazy.optimizer.params.model = second
    groups = instantiate(lazy.optimizer).param_groups
    expected = optimizer_params_from_cfg(yaml, first)
    summary = [
        sorted((g["lr"], g.get("weight_decay", 1e-4), len(g["params"])) for g in side)
        for side in (groups, expected)
    ]
    assert summary[0] == summary[1]
    assert lazy.train.max_iter == yaml.SOLVER.MAX_ITER


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
