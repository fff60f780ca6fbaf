"""A step of training and a detection of one-stage detectors on emoji scenes."""

from collections.abc import Callable

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary


@pytest.fixture
def dense_cfg(emoji_cfg) -> Callable[..., CfgNode]:
    """Function from a config name and overrides to a config that keeps every detection."""

    def build(name: str, *overrides: object) -> CfgNode:
        every = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.NUM_CONVS", 1]
        tests = ["DATASETS.TEST", ("emoji_ov_val",)]
        return emoji_cfg(name, *every, *tests, *overrides)

    return build


@pytest.fixture
def step() -> Callable[[CfgNode], tuple[nn.Module, dict[str, Tensor]]]:
    """Function from a config to a model with gradients, and its losses."""

    def run(cfg: CfgNode) -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = build_model(cfg).train()
        with EventStorage():
            losses = model(next(iter(build_detection_train_loader_from_cfg(cfg))))
        sum(losses.values()).backward()
        return model, losses

    return run


@pytest.fixture
def first_scene() -> Callable[[CfgNode], list[dict]]:
    """Function from a config to the batch of its first test scene."""
    return lambda cfg: next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))


@pytest.fixture
def typed() -> Callable[[int], TextEmbeddings]:
    """Function from a width to the random embeddings of two words."""

    def make(width: int) -> TextEmbeddings:
        rows = torch.randn(2, width, generator=torch.Generator().manual_seed(3))
        unit = nn.functional.normalize(rows, dim=1)
        words = Vocabulary.from_names(["saw", "axe"])
        return TextEmbeddings(words, unit, None, "ViT-Ti-8-emoji", "emoji")

    return make
