"""Models on a GPU find what they find on the CPU, and leave it in one place.

The GPU is played by the CPU, operation by operation.
"""

from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor
from torch.utils._pytree import tree_leaves

from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.refer_demo import ReferringPredictor
from tests.played_gpu import GPU, Played, played_gpu

WORDS = ["rabbit", "police car", "sunflower", "grass"]


def shipped(emoji_cfg, name: str) -> CfgNode:
    """The config of weights that come with the package, without half precision."""
    keys = ("MODEL.CLIP.PRECISION", "fp32", "MODEL.CLIP.PRETRAINED", "emoji")
    cfg: CfgNode = emoji_cfg(name, *keys, "MODEL.WEIGHTS", f"clipself_d2://emoji/{name}.pth")
    return cfg


def values(output: Any) -> list[Tensor]:
    """Tensors of a model's output, those of its instances included."""
    found = []
    for leaf in tree_leaves(output):
        if isinstance(leaf, Instances):
            found += [getattr(field, "tensor", field) for field in leaf.get_fields().values()]
        elif isinstance(leaf, Tensor):
            found.append(leaf)
    return found


def assert_same(played: Any, real: Any) -> None:
    ours, wanted = values(played), values(real)
    assert sum(tensor.numel() for tensor in wanted), "something is found"
    assert len({type(tensor) for tensor in ours}) == 1, "all of it is in one place"
    for own, expected in zip(ours, wanted, strict=True):
        # Text is embedded in half precision on a GPU.
        own = own.on_cpu if isinstance(own, Played) else own
        torch.testing.assert_close(own, expected, atol=2e-3, rtol=0)


def test_a_played_gpu_refuses_what_a_gpu_refuses():
    real = torch.arange(6.0).reshape(2, 3)
    with played_gpu():
        own = real.to("cuda")
        assert own.device == GPU
        assert own.cpu().tolist() == (own * 1).tolist() == real.tolist()
        for mix in (lambda: own + real, lambda: real[own > 2], lambda: torch.cat([own, real])):
            with pytest.raises(RuntimeError, match="of the CPU and of the GPU"):
                mix()
        with pytest.raises((RuntimeError, TypeError)):
            own.numpy()
        with torch.autocast("cuda", torch.bfloat16):
            assert (own @ own.T).dtype == torch.bfloat16
        own[0] = 7
        assert own[[0, 1], [0, 2]].tolist() == [7, 5]
    assert real.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("name", ["fvit_clipself", "ov_panoptic_clipself"])
def test_words_find_the_same(emoji_cfg, emoji_root, name):
    cfg = shipped(emoji_cfg, name)
    pictures = sorted((emoji_root / "emoji" / "val").glob("*.jpg"))[:2]
    found = []
    for device in ("cpu", "cuda"):
        cfg.MODEL.DEVICE = device
        with played_gpu() if device == "cuda" else nullcontext():
            predictor = OpenVocabPredictor(cfg, min_score=0.05)
            predictor.set_classes(WORDS)
            found.append(predictor.detect_all(pictures))
    real, played = found
    assert_same([each["instances"] for each in played], [each["instances"] for each in real])


def test_a_sentence_finds_the_same(emoji_cfg):
    cfg = shipped(emoji_cfg, "cris")
    picture = np.random.default_rng(0).integers(0, 256, (144, 192, 3), np.uint8)
    found = []
    for device in ("cpu", "cuda"):
        cfg.MODEL.DEVICE = device
        with played_gpu() if device == "cuda" else nullcontext():
            found.append(ReferringPredictor(cfg)(picture, ["the rabbit", "the red one"]))
    real, played = found
    assert_same(played, real)
