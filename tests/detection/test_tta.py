"""Test-time augmentation with any vocabulary."""

import pytest
import torch
from detectron2.modeling import build_model
from torch import nn

from clipself_d2.detection.tta import (
    VocabularyRCNNWithTTA,
    count_classes,
    with_test_time_augmentation,
)
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, use_vocabulary

AUG = ["TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 80), "TEST.AUG.MAX_SIZE", 128]


@pytest.fixture
def cfg(emoji_cfg):
    cfg = emoji_cfg("fvit_untouched", *AUG)
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.freeze()
    return cfg


def image() -> list[dict]:
    torch.manual_seed(3)
    pixels = torch.randint(0, 256, (3, 72, 96), dtype=torch.uint8)
    return [{"image": pixels, "height": 144, "width": 192}]


def words(count: int, dim: int) -> TextEmbeddings:
    rows = nn.functional.normalize(torch.randn(count + 1, dim), dim=1)
    vocabulary = Vocabulary.from_names([f"word{number}" for number in range(count)])
    return TextEmbeddings(vocabulary, rows[:-1], rows[-1], "ViT-Ti-8-emoji", "emoji", "emoji")


def test_detections_are_in_the_frame_of_the_original(cfg):
    model = with_test_time_augmentation(cfg, build_model(cfg).eval())
    with torch.no_grad():
        found = model(image())[0]["instances"]
    assert found.image_size == (144, 192)
    assert len(found) > 0
    assert found.pred_boxes.tensor[:, 2].max() <= 192
    assert (found.scores[:-1] >= found.scores[1:]).all()


@pytest.mark.parametrize("count", [3, 120])
def test_the_number_of_classes_follows_the_vocabulary(cfg, count):
    model = build_model(cfg).eval()
    augmented = VocabularyRCNNWithTTA(cfg, model)
    classifier = next(m for m in model.modules() if isinstance(m, TextClassifier))
    with use_vocabulary(model, words(count, classifier.embed_dim)), torch.no_grad():
        assert count_classes(model) == count
        classes = augmented(image())[0]["instances"].pred_classes
    assert classes.max() < count
    if count > 80:
        assert classes.max() >= 80, "the classes above Detectron2's number were lost"


def test_without_the_key_the_model_is_left_alone(cfg):
    cfg = cfg.clone()
    cfg.defrost()
    cfg.TEST.AUG.ENABLED = False
    model = nn.Identity()
    assert with_test_time_augmentation(cfg, model) is model


def test_what_is_no_rcnn_is_refused(cfg):
    with pytest.raises(AssertionError, match="only supported on GeneralizedRCNN"):
        with_test_time_augmentation(cfg, nn.Identity())
