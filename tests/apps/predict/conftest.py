"""What tests of the predictor share."""

from pathlib import Path

import pytest
import torch

from clipself_d2.engine.trainer import Trainer


@pytest.fixture
def detector_cfg(emoji_cfg, tmp_path: Path):
    """Function from a config name to a config with a checkpoint of random weights."""

    def make(name: str = "fvit_untouched"):
        cfg = emoji_cfg(name, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        # Without weights the text tower is another one whenever it is built.
        cfg.MODEL.CLIP.PRETRAINED = "emoji"
        cfg.MODEL.RETINANET.SCORE_THRESH_TEST = 0.0
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 20
        torch.manual_seed(0)
        torch.save({"model": Trainer.build_model(cfg).state_dict()}, tmp_path / "model.pth")
        return cfg

    return make


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "model.pth"


@pytest.fixture
def pictures(emoji_data: Path) -> list[Path]:
    return sorted((emoji_data / "emoji" / "val").glob("*.jpg"))
