"""configs/emoji/fvit_masks.yaml: class-agnostic masks, trained and scored in the LVIS protocol."""

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.engine.trainer import Trainer
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

ITERATIONS = 8


@pytest.fixture
def cfg(emoji_cfg) -> CfgNode:
    return emoji_cfg(
        "fvit_masks",
        *("DATASETS.TEST", ("emoji_lvis_val",), "MODEL.CLIP.PRETRAINED", "emoji"),
        *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "SOLVER.WARMUP_ITERS", 0),
        *("TEST.DETECTIONS_PER_IMAGE", 10, "SOLVER.MAX_ITER", 100),
        *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "SOLVER.BASE_LR", 0.005),
    )


@pytest.fixture
def model(cfg: CfgNode) -> nn.Module:
    torch.manual_seed(0)
    return build_model(cfg)


def train(cfg: CfgNode, model: nn.Module) -> list[float]:
    """Mask losses of a few iterations on the same two scenes."""
    optimizer = Trainer.build_optimizer(cfg, model.train())
    batch = next(iter(build_detection_train_loader_from_cfg(cfg)))
    history = []
    with EventStorage():
        for _ in range(ITERATIONS):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            history.append(losses["loss_mask"].item())
    return history


def detect(cfg: CfgNode, model: nn.Module):
    loader = build_detection_test_loader(cfg, "emoji_lvis_val")
    with torch.no_grad():
        return model.eval()(next(iter(loader)))[0]["instances"]


def test_mask_loss_falls(cfg: CfgNode, model: nn.Module) -> None:
    history = train(cfg, model)
    assert min(history) < 0.9 * history[0], history


def test_masks_do_not_depend_on_the_vocabulary(cfg: CfgNode, model: nn.Module) -> None:
    assert model.roi_heads.mask_head.predictor.out_channels == 1
    heads = model.roi_heads
    typed = TextEmbeddings.load_or_build(
        Vocabulary.from_names(["cat", "dog"]), clip=cfg.MODEL.CLIP.NAME, weights="emoji",
        templates="emoji",
    )  # fmt: skip
    # One box for all: with the class scores out of play, the masks must be the same.
    boxes = detect(cfg, model)[:3]
    features = model.backbone(torch.zeros(1, 3, 144, 192))
    with torch.no_grad():
        before = heads._forward_mask(features, [boxes])[0].pred_masks
        with use_vocabulary(model, typed):
            boxes.pred_classes = torch.tensor([1, 0, 1])
            after = heads._forward_mask(features, [boxes])[0].pred_masks
    assert torch.equal(before, after)


def test_masks_are_scored(cfg: CfgNode, model: nn.Module) -> None:
    results = Trainer.test(cfg, model)
    assert {"APr", "APc", "APf", "AP"} <= set(results["segm"])
