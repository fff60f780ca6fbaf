"""Fixtures that several packages share: a tiny emoji data set, a tiny config, a golden ResNet."""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from open_clip.modified_resnet import ModifiedResNet
from torch import Tensor

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.data.datasets import register_emoji
from clipself_d2.engine.cli import load_config
from clipself_d2.layers.text_classifier import TextClassifier

ROOT = Path(__file__).parents[1]
EMOJI_NAMES = (
    "emoji_ov_train",
    "emoji_ov_val",
    "emoji_lvis_train",
    "emoji_lvis_val",
    "emoji_panoptic_val",
    "emoji_train_images",
)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def emoji_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data sets with 16 training and 4 validation scenes."""
    root = tmp_path_factory.mktemp("datasets")
    prepare_emoji(root, EmojiOptions(train=16, val=4, seed=0))
    return root


@pytest.fixture
def emoji_data(emoji_root: Path) -> Iterator[Path]:
    """The registered emoji data sets read the tiny folder while the test runs."""
    _forget()
    register_emoji(emoji_root)
    yield emoji_root
    _forget()
    register_emoji("datasets")


def _forget() -> None:
    for name in EMOJI_NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def reread_emoji(emoji_data: Path) -> Callable[[Path], None]:
    """Function that makes the registered emoji data sets read another folder."""

    def reread(root: Path) -> None:
        _forget()
        register_emoji(root)

    return reread


@pytest.fixture
def emoji_cfg(emoji_data: Path, tmp_path: Path):
    """Function from a config name and overrides to a small config with random CLIP weights."""

    def build(name: str, *overrides: object) -> CfgNode:
        cfg = load_config(
            str(ROOT / "configs" / "emoji" / f"{name}.yaml"),
            ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", "", "SEED", "7"]
            + ["MODEL.CLIP.PRECISION", "fp32"],
        )
        cfg.merge_from_list(
            ["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", 0]
            + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()]
        )
        cfg.merge_from_list(list(overrides))
        return cfg

    return build


GOLDEN = Path(__file__).parent / "golden" / "regionclip"


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
        scale=1.0 / temperature,
        learn_scale=False,
    )


@pytest.fixture
def kit() -> SimpleNamespace:
    """Readers of the golden files, their tower, and RegionCLIP's classifier."""
    return SimpleNamespace(pt=load_pt, npz=load_npz, tower=golden_tower, classifier=zero_classifier)
