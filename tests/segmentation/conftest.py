"""A small world of label maps, and a small CAT-Seg on it."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model
from PIL import Image

from clipself_d2.segmentation import CATSegmentor

CLASSES = ["dog", "car", "apple", "grass, lawn", "sky"]


@pytest.fixture
def labelled(tmp_path: Path) -> Iterator[str]:
    """Data set of four pictures whose halves are of two classes, with an ignored border."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(4):
        labels = np.full((64, 80), number % 5, np.uint8)
        labels[:, 40:] = (number + 1) % 5
        labels[:4] = 255
        pixels = rng.integers(0, 255, (64, 80, 3), dtype=np.uint8)
        image, truth = tmp_path / f"{number}.jpg", tmp_path / f"{number}.png"
        Image.fromarray(pixels).save(image)
        Image.fromarray(labels).save(truth)
        records.append(
            {
                "file_name": str(image),
                "sem_seg_file_name": str(truth),
                "height": 64,
                "width": 80,
                "image_id": number,
            }
        )
    for name, count in (("tiny_labels", 4), ("one_label", 1)):
        DatasetCatalog.register(name, partial(records.__getitem__, slice(count)))
        MetadataCatalog.get(name).set(
            stuff_classes=CLASSES,
            novel_classes=["apple"],
            ignore_label=255,
            evaluator_type="sem_seg",
        )
    yield "tiny_labels"
    for name in ("tiny_labels", "one_label"):
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def catseg_cfg(emoji_cfg, labelled: str):
    """Function from overrides to a config whose towers both learn, on the small world."""

    def build(*overrides: object) -> CfgNode:
        return emoji_cfg(
            "catseg_untouched",
            *("DATASETS.TRAIN", (labelled,), "MODEL.CLIP.TEXT_TRAINABLE_BLOCKS", -1),
            *("MODEL.CAT_SEG.CLIP_SIZE", 64, "MODEL.CAT_SEG.WINDOW_SIZE", 64),
            *("MODEL.CAT_SEG.CANVAS_SIZE", 96, "MODEL.CAT_SEG.PAD_LEN", 8),
            *("INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MIN_SIZE_TEST", 64),
            *overrides,
        )

    return build


@pytest.fixture
def make_model(catseg_cfg) -> Callable[..., CATSegmentor]:
    """Function from overrides to a model with the same random weights each time."""

    def build(*overrides: object) -> CATSegmentor:
        torch.manual_seed(0)
        return build_model(catseg_cfg(*overrides))

    return build


@pytest.fixture
def items() -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for size in ((64, 72), (56, 80)):
        labels = torch.randint(0, 5, size, generator=generator)
        labels[:8] = 255
        image = torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8)
        made.append({"image": image, "sem_seg": labels, "height": 50, "width": 70})
    return made
