from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from torch import nn

from clipself_d2.distill.offline_rpn import OfflineRPN, load_offline_rpn, read_rpn_config

CONFIG = """
MODEL:
  META_ARCHITECTURE: ProposalNetwork
  BACKBONE:
    NAME: build_resnet_backbone
  RESNETS:
    DEPTH: 18
    RES2_OUT_CHANNELS: 64
    OUT_FEATURES: [res4]
  RPN:
    POST_NMS_TOPK_TEST: 7
INPUT:
  FORMAT: BGR
"""


@pytest.fixture
def rpn_file(tmp_path: Path) -> Path:
    file = tmp_path / "rpn.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def saved(rpn_file, emoji_cfg, tmp_path):
    """The config of a run, and a proposal network with random weights in a file."""
    cfg = emoji_cfg("clipself_patches", "MODEL.CLIP.WEIGHTS", "student.pth")
    torch.manual_seed(0)
    network = build_model(read_rpn_config(cfg, str(rpn_file)))
    DetectionCheckpointer(network, str(tmp_path)).save("rpn")
    return cfg, network.eval(), tmp_path / "rpn.pth"


def test_proposals_are_those_of_the_network(saved, rpn_file) -> None:
    cfg, network, weights = saved
    rpn = load_offline_rpn(cfg, str(rpn_file), str(weights))
    image = torch.randint(0, 255, (3, 64, 96), generator=torch.Generator().manual_seed(1)).byte()
    with torch.no_grad():
        (found,) = network([{"image": image.flip(0).float(), "height": 64, "width": 96}])
    expected = found["proposals"].proposal_boxes.tensor
    (boxes,) = rpn([image])
    torch.testing.assert_close(boxes, expected)
    assert 0 < len(boxes) <= 7


def test_detectron2s_keys_are_its_defaults_and_not_those_of_the_run(saved, rpn_file) -> None:
    cfg, *_ = saved
    own = read_rpn_config(cfg, str(rpn_file))
    assert list(own.MODEL.PIXEL_MEAN) != list(cfg.MODEL.PIXEL_MEAN)
    assert own.MODEL.CLIP.WEIGHTS == ""
    assert own.MODEL.CLIP.NAME == cfg.MODEL.CLIP.NAME
    assert cfg.MODEL.CLIP.WEIGHTS == "student.pth"
    assert own.MODEL.DEVICE == "cpu"


def test_the_network_is_frozen_and_stays_in_eval(saved, rpn_file) -> None:
    cfg, _, weights = saved
    rpn = load_offline_rpn(cfg, str(rpn_file), str(weights)).train()
    assert not any(module.training for module in rpn.modules())
    assert not any(parameter.requires_grad for parameter in rpn.parameters())


def test_missing_and_foreign_files_are_named(saved, rpn_file, tmp_path) -> None:
    cfg, network, weights = saved
    with pytest.raises(ValueError, match=r"RPN_CONFIG and RPN_WEIGHTS"):
        load_offline_rpn(cfg, str(rpn_file), "")
    with pytest.raises(FileNotFoundError, match=r"RPN_CONFIG nowhere\.yaml"):
        load_offline_rpn(cfg, "nowhere.yaml", str(weights))
    with pytest.raises(FileNotFoundError, match=r"RPN_WEIGHTS nowhere\.pth"):
        load_offline_rpn(cfg, str(rpn_file), "nowhere.pth")
    torch.save({"model": {"other": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"RPN_WEIGHTS lacks (backbone|proposal_generator)"):
        load_offline_rpn(cfg, str(rpn_file), str(tmp_path / "other.pth"))
    rpn_file.write_text("MODEL:\n  RPN:\n    NMS: 0.5\n")
    with pytest.raises(ValueError, match=r"NMS in MODEL\.REGIONCLIP\.RPN_CONFIG"):
        load_offline_rpn(cfg, str(rpn_file), str(weights))


def test_a_model_without_proposals_is_refused() -> None:
    with pytest.raises(ValueError, match="Linear has no backbone and no proposal_generator"):
        OfflineRPN(detector=nn.Linear(1, 1), rgb=True)
