"""The tiny CLIP ResNet of RegionCLIP's golden values, for several test files."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from clipself_d2.clip.resnet_tower import ResNetTower
from clipself_d2.layers.text_classifier import TextClassifier

GOLDEN = Path(__file__).parents[1] / "golden" / "regionclip"


def load_pt(name: str) -> dict:
    content: dict = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    return content


def load_npz(name: str) -> dict[str, Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def golden_tower() -> ResNetTower:
    """Tower with the golden weights, norms not frozen yet."""
    golden = load_pt("backbone_roi")
    cfg = golden["cfg"]
    visual = ModifiedResNet(
        cfg["layers"], cfg["output_dim"], cfg["heads"], cfg["input_resolution"], cfg["width"]
    )
    state = visual.state_dict()
    assert set(state) - set(golden["state_dict"]) == {k for k in state if k.endswith("_tracked")}
    visual.load_state_dict(golden["state_dict"], strict=False)
    return ResNetTower(
        visual=visual, name="RN-tiny", pixel_mean=(122.8, 116.7, 104.1), pixel_std=(68.5, 66.6, 70)
    )


def zero_classifier(
    embeddings: Tensor, temperature: float, base: int | None = None
) -> TextClassifier:
    """RegionCLIP's classifier: a background of zeros, a fixed temperature."""
    count = len(embeddings)
    mask = torch.arange(count) < (count if base is None else base)
    return TextClassifier(
        embeddings_KD=embeddings,
        base_mask_K=mask,
        background=None,
        background_mode="zero",
        temperature=1.0 / temperature,
        learn_temperature=False,
    )


@pytest.fixture
def kit() -> SimpleNamespace:
    """Readers of the golden files, their tower, and RegionCLIP's classifier."""
    return SimpleNamespace(pt=load_pt, npz=load_npz, tower=golden_tower, classifier=zero_classifier)
