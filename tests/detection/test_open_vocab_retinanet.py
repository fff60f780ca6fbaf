"""RetinaNet with text classes; what it shares with FCOS is tested in test_dense_text."""

import pytest
from detectron2.modeling.meta_arch import RetinaNet

from clipself_d2.detection import OpenVocabRetinaNet, OpenVocabRetinaNetHead


def test_it_has_the_losses_of_detectron2s_retinanet(dense_cfg, step) -> None:
    model, losses = step(dense_cfg("retinanet"))
    assert isinstance(model, OpenVocabRetinaNet)
    assert isinstance(model, RetinaNet)
    assert set(losses) == {"loss_cls", "loss_box_reg"}


@pytest.mark.parametrize("num_anchors", [3, 6])
def test_every_anchor_of_a_cell_has_an_embedding_and_a_box(dense_cfg, num_anchors: int) -> None:
    cfg = dense_cfg("retinanet")
    parts = OpenVocabRetinaNet.from_config(cfg)
    classifier = parts["head"].cls_score.classifier
    shapes = [parts["backbone"].output_shape()["p3"]]
    head = OpenVocabRetinaNetHead(
        input_shape=shapes, classifier=classifier, num_anchors=num_anchors, conv_dims=[8]
    )
    assert head.cls_score.embed.out_channels == num_anchors * classifier.embed_dim
    assert head.bbox_pred.out_channels == num_anchors * 4
