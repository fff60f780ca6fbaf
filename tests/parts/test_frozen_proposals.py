"""The frozen proposal network: equal to the detector it comes from, and strict about its files."""

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model

from clipself_d2.config import add_clipself_config
from clipself_d2.parts import frozen_proposals
from clipself_d2.parts.frozen_proposals import build_frozen_proposals

YAML = """
MODEL:
  DEVICE: cpu
  META_ARCHITECTURE: ProposalNetwork
  PIXEL_MEAN: [10.0, 60.0, 200.0]
  PIXEL_STD: [30.0, 40.0, 50.0]
  BACKBONE: {NAME: build_resnet_backbone}
  RESNETS:
    DEPTH: 50
    WIDTH_PER_GROUP: 4
    STEM_OUT_CHANNELS: 8
    RES2_OUT_CHANNELS: 8
    OUT_FEATURES: [res4]
  RPN: {IN_FEATURES: [res4], POST_NMS_TOPK_TEST: 12}
INPUT: {FORMAT: BGR}
VERSION: 2
"""


def read(path: Path) -> CfgNode:
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.merge_from_file(str(path))
    return cfg


@pytest.fixture
def files(tmp_path) -> tuple[Path, Path]:
    """Config and checkpoint of a tiny ResNet C4's RPN, with statistics of its own."""
    config, weights = tmp_path / "rpn.yaml", tmp_path / "rpn.pth"
    config.write_text(YAML)
    torch.manual_seed(0)
    state = build_model(read(config)).state_dict()
    for key in state:
        if "running" in key:
            state[key] = torch.rand_like(state[key]) + 0.5
    extra = {
        "roi_heads.box_predictor.cls_score.weight": torch.zeros(3, 3),
        "pixel_mean": torch.zeros(3, 1, 1),
        "proposal_generator.anchor_generator.cell_anchors.0": torch.zeros(15, 4),
    }
    torch.save({"model": {**state, **extra}}, weights)
    return config, weights


@pytest.fixture
def cfg(files) -> CfgNode:
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.DEVICE, cfg.INPUT.FORMAT = "cpu", "RGB"
    # The run's own keys, which are not the network's.
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.PIXEL_MEAN = 3, [1.0, 2.0, 3.0]
    cfg.MODEL.FROZEN_RPN.CONFIG, cfg.MODEL.FROZEN_RPN.WEIGHTS = map(str, files)
    return cfg


def test_proposals_are_those_of_the_detector_on_bgr_pictures(cfg, files) -> None:
    detector = build_model(read(files[0])).eval()
    state = torch.load(files[1], weights_only=True)["model"]
    detector.load_state_dict({k: v for k, v in state.items() if k in detector.state_dict()})
    image = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8)
    with torch.no_grad():
        sample = {"image": image.flip(0), "height": 64, "width": 96}
        expected = detector([sample])[0]["proposals"]
    (found,) = build_frozen_proposals(cfg)([image])
    assert 0 < len(found) <= 12
    torch.testing.assert_close(found.proposal_boxes.tensor, expected.proposal_boxes.tensor)
    torch.testing.assert_close(found.objectness_logits, expected.objectness_logits)


def test_network_is_frozen_and_stays_in_evaluation_mode(cfg) -> None:
    network = build_frozen_proposals(cfg).train()
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(key.startswith("pixel") for key in network.state_dict())


def test_pictures_of_two_sizes_are_padded(cfg) -> None:
    network = build_frozen_proposals(cfg)
    small, large = torch.zeros(3, 40, 56), torch.zeros(3, 64, 96)
    assert [found.image_size for found in network([small, large])] == [(40, 56), (64, 96)]


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_checkpoint_of_another_network_is_refused(cfg, files, change) -> None:
    state = torch.load(files[1], weights_only=True)["model"]
    name = "proposal_generator.rpn_head.conv.weight"
    if change == "missing":
        del state[name]
    elif change == "unknown":
        state["backbone.res9.weight"] = torch.zeros(1)
        name = "backbone.res9.weight"
    else:
        state[name] = torch.zeros(1, 1, 1, 1)
    torch.save({"model": state}, files[1])
    with pytest.raises(ValueError, match=name):
        build_frozen_proposals(cfg)


def test_missing_files_and_foreign_keys_are_told(cfg, files) -> None:
    files[0].write_text(YAML + "MODEL_X: 1\n")
    with pytest.raises(ValueError, match=r"MODEL_X.*FROZEN_RPN.CONFIG"):
        build_frozen_proposals(cfg)
    files[0].write_text(YAML)
    cfg.MODEL.FROZEN_RPN.WEIGHTS = "nowhere.pth"
    with pytest.raises(FileNotFoundError, match=r"FROZEN_RPN.WEIGHTS nowhere\.pth"):
        build_frozen_proposals(cfg)
    cfg.MODEL.FROZEN_RPN.CONFIG = "nowhere.yaml"
    with pytest.raises(FileNotFoundError, match=r"FROZEN_RPN.CONFIG nowhere\.yaml"):
        build_frozen_proposals(cfg)
    cfg.MODEL.FROZEN_RPN.CONFIG = ""
    with pytest.raises(ValueError, match="FROZEN_RPN.CONFIG"):
        build_frozen_proposals(cfg)


def test_config_without_a_proposal_network_is_refused(cfg, files) -> None:
    none = "  PROPOSAL_GENERATOR: {NAME: PrecomputedProposals}\n  RPN: {"
    files[0].write_text(YAML.replace("  RPN: {", none))
    with pytest.raises(ValueError, match="has no proposal"):
        build_frozen_proposals(cfg)


def test_the_plugins_keys_come_from_the_run_but_for_the_towers_weights(cfg) -> None:
    cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.WEIGHTS = "RN50-quickgelu", "student.pth"
    own = frozen_proposals._read_config(cfg)
    assert (own.MODEL.CLIP.NAME, own.MODEL.CLIP.WEIGHTS) == ("RN50-quickgelu", "")
    assert cfg.MODEL.CLIP.WEIGHTS == "student.pth"
    assert list(own.MODEL.PIXEL_MEAN) == [10.0, 60.0, 200.0]


def test_building_leaves_the_randomness_of_the_run_alone(cfg) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    build_frozen_proposals(cfg)
    assert torch.equal(torch.rand(3), expected)
