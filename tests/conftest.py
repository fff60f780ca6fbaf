"""Fixtures that several packages share: a tiny emoji data set and a tiny config."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets import register_emoji
from clipself_d2.data.emoji.prepare import EmojiOptions, prepare_emoji
from clipself_d2.engine.cli import load_config

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
