"""FCOS with text classes; what it shares with RetinaNet is tested in test_dense_text."""

from detectron2.modeling.meta_arch.fcos import FCOS
from torch import nn

from clipself_d2.detection import OpenVocabFCOS


def test_it_has_the_losses_of_detectron2s_fcos(dense_cfg, step) -> None:
    model, losses = step(dense_cfg("fcos"))
    assert isinstance(model, OpenVocabFCOS)
    assert isinstance(model, FCOS)
    assert set(losses) == {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
    assert model.head.cls_score.num_anchors == 1


def test_keys_of_retinanet_set_its_options(dense_cfg) -> None:
    keys = {"NUM_CONVS": 3, "FOCAL_LOSS_ALPHA": 0.4, "NMS_THRESH_TEST": 0.7}
    flat = [part for key, value in keys.items() for part in (f"MODEL.RETINANET.{key}", value)]
    model = OpenVocabFCOS(dense_cfg("fcos", *flat))
    assert len([part for part in model.head.bbox_subnet if isinstance(part, nn.Conv2d)]) == 3
    assert (model.focal_loss_alpha, model.test_nms_thresh) == (0.4, 0.7)
