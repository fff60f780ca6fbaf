"""Fixtures that several packages share: a tiny emoji data set, a tiny config, a golden ResNet."""

from __future__ import annotations

import functools
import gc
import json
import runpy
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

# The process that deals out the tests to others reads this file as well, and needs no torch.
if TYPE_CHECKING:
    import numpy as np
    from detectron2.config import CfgNode
    from torch import Tensor

    from clipself_d2.clip.towers.resnet import ResNetTower
    from clipself_d2.layers.text_classifier import TextClassifier

# Imports make objects that stay; to look at them again and again is a quarter of their time.
gc.disable()

ROOT = Path(__file__).parents[1]
EMOJI_NAMES = (
    "emoji_ov_train",
    "emoji_ov_val",
    "emoji_lvis_train",
    "emoji_lvis_val",
    "emoji_panoptic_val",
    "emoji_ov_panoptic_train",
    "emoji_ov_panoptic_val",
    "emoji_ov_sem_seg_train",
    "emoji_ov_sem_seg_val",
    "emoji_train_images",
)


# Files of minutes go first, so that no process is left alone with one at the end.
LONG = (
    "test_end_to_end.py",
    "test_keys.py",
    "test_distill_trainer.py",
    "test_exact_steps.py",
    "test_distill_recipes.py",
    "test_launch.py",
    "test_recipes.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: (*LONG, item.path.name).index(item.path.name))


def pytest_collection_finish() -> None:
    # What is there before the first test stays: the garbage collector need not look at it at all.
    gc.freeze()
    gc.enable()


@pytest.fixture
def rng() -> np.random.Generator:
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def emoji_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of data sets with 16 training and 4 validation scenes."""
    from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji

    root = tmp_path_factory.mktemp("datasets")
    prepare_emoji(root, EmojiOptions(train=16, val=4, seed=0, panoptic_train=True))
    return root


@functools.cache
def warm() -> SimpleNamespace:
    return SimpleNamespace(**runpy.run_path(str(ROOT / "tests" / "warm_python.py")))


class WarmPython:
    """One server of warm Pythons for all processes of a test run, which starts with them."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.server = warm().start(self.folder)

    @pytest.hookimpl
    def pytest_configure_node(self, node: object) -> None:
        node.workerinput["warm_python"] = str(self.folder)

    def pytest_unconfigure(self) -> None:
        self.server.terminate()
        self.server.wait()
        shutil.rmtree(self.folder)


def pytest_sessionstart(session: pytest.Session) -> None:
    if session.config.getoption("numprocesses", None):
        # This process collects nothing.
        gc.enable()
        if sys.platform == "linux":
            session.config.pluginmanager.register(WarmPython())


@pytest.fixture(scope="session")
def python(request: pytest.FixtureRequest) -> Iterator[str]:
    """Python for the commands of a test, with other people's libraries imported already."""
    given = getattr(request.config, "workerinput", {}).get("warm_python")
    if sys.platform != "linux":
        yield sys.executable
    elif given:
        yield warm().wait_for(Path(given))
    else:
        own = WarmPython()
        yield warm().wait_for(own.folder)
        own.pytest_unconfigure()


@pytest.fixture
def emoji_data(emoji_root: Path) -> Iterator[Path]:
    """The registered emoji data sets read the tiny folder while the test runs."""
    _read_emoji(emoji_root)
    yield emoji_root
    _read_emoji("datasets")


def _read_emoji(root: str | Path) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from clipself_d2.data.datasets import register_emoji

    for name in EMOJI_NAMES:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    register_emoji(root)


@pytest.fixture
def reread_emoji(emoji_data: Path) -> Callable[[Path], None]:
    """Function that makes the registered emoji data sets read another folder."""
    return _read_emoji


@functools.cache
def read_emoji_config(name: str) -> CfgNode:
    """A recipe with random CLIP weights, one prompt a class and small pictures; to be cloned."""
    from clipself_d2.engine.cli import load_config

    return load_config(
        str(ROOT / "configs" / "emoji" / f"{name}.yaml"),
        ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", "", "SEED", "7"]
        + ["MODEL.VOCABULARY.TEMPLATES", "single", "INPUT.REGIONS.IMAGE_SIZES", (96,)]
        + ["INPUT.REGIONS.MAX_BOXES", 4]
        + ["INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MAX_SIZE_TRAIN", 128, "INPUT.REFER_SIZE", 96]
        + ["INPUT.MIN_SIZE_TEST", 96, "INPUT.MAX_SIZE_TEST", 128]
        + ["MODEL.CLIP.PRECISION", "fp32", "MODEL.DEVICE", "cpu"],
    )


@pytest.fixture
def emoji_cfg(emoji_data: Path, tmp_path: Path):
    """Function from a config name and overrides to a small config with random CLIP weights."""

    def build(name: str, *overrides: object) -> CfgNode:
        cfg = read_emoji_config(name).clone()
        cfg.merge_from_list(
            ["OUTPUT_DIR", str(tmp_path / "out"), "DATALOADER.NUM_WORKERS", 0]
            + ["SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "DATASETS.TEST", ()]
        )
        cfg.merge_from_list(list(overrides))
        return cfg

    return build


GOLDEN = Path(__file__).parent / "golden" / "regionclip"


def load_pt(name: str) -> dict:
    import torch

    content: dict = torch.load(GOLDEN / f"{name}.pt", weights_only=True)
    return content


def load_npz(name: str) -> dict[str, Tensor]:
    import numpy as np
    import torch

    with np.load(GOLDEN / f"{name}.npz") as arrays:
        return {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}


def golden_tower() -> ResNetTower:
    """Tower with the golden weights, norms not frozen yet."""
    from open_clip.modified_resnet import ModifiedResNet

    from clipself_d2.clip.towers.resnet import ResNetTower

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
    import torch

    from clipself_d2.layers.text_classifier import TextClassifier

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


@pytest.fixture
def catalogs() -> Iterator[None]:
    """Forget what a test registers."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    before = set(DatasetCatalog.list()), set(MetadataCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before[0]:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - before[1]:
        MetadataCatalog.remove(name)


@pytest.fixture
def write_picture() -> Callable[..., Path]:
    """Function that writes a small picture of one colour."""
    from PIL import Image

    def write(path: Path, size: tuple[int, int] = (40, 30), colour: int = 90) -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (colour, 0, 255 - colour)).save(path)
        return path

    return write


@pytest.fixture
def coco_root(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    """COCO 2017 with six training and three validation images, and all 80 categories.

    Training image 1 has a dog (novel) and a person, 2 a dog alone, 3 a person alone, 4 a teddy
    bear (neither), 5 nothing, 6 a zebra; validation image 11 a dog, 12 a teddy bear, 13 a zebra.
    """
    from detectron2.data.datasets.builtin_meta import COCO_CATEGORIES

    root = tmp_path / "data"
    things = [row for row in COCO_CATEGORIES if row["isthing"]]
    ids = {row["name"]: row["id"] for row in things}
    contents = {
        "train": [(1, "dog"), (1, "person"), (2, "dog"), (3, "person"), (4, "teddy bear")]
        + [(5, None), (6, "zebra")],
        "val": [(11, "dog"), (12, "teddy bear"), (13, "zebra")],
    }
    for split, objects in contents.items():
        numbers = sorted({number for number, _ in objects})
        document = {
            "info": {"year": 2017},
            "licenses": [{"id": 1, "name": 'a, "b" [c] {d}'}],
            "images": [
                {
                    "license": 1,
                    "file_name": f"{number:012d}.jpg",
                    "coco_url": f"http://images.cocodataset.org/{split}2017/{number:012d}.jpg",
                    "id": number,
                    "width": 40,
                    "height": 30,
                }
                for number in numbers
            ],
            "annotations": [
                {
                    "segmentation": [[1.5, 2, 11.25, 2, 11.25, 22, 1.5, 22]],
                    "area": 195.0,
                    "iscrowd": 0,
                    "image_id": image_id,
                    "bbox": [1.5, 2, 9.75, 20],
                    "category_id": ids[name],
                    "id": 100 + number,
                }
                for number, (image_id, name) in enumerate(objects)
                if name
            ],
            "categories": [
                {"supercategory": "x", "id": row["id"], "name": row["name"]} for row in things
            ],
        }
        file = root / "coco" / "annotations" / f"instances_{split}2017.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
        for number in numbers:
            write_picture(root / "coco" / f"{split}2017" / f"{number:012d}.jpg")
    return root


@pytest.fixture
def lvis_root(tmp_path: Path, write_picture: Callable[..., Path]) -> Path:
    """LVIS v1 in miniature, without ``file_name``; two images a split.

    Each has objects of the classes 1 (common), 3 (frequent) and 13 (rare). Validation image 21
    lies in COCO's train2017, 22 in its val2017.
    """
    from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES

    root = tmp_path / "data"
    for split, places in {
        "train": {1: "train2017", 2: "train2017"},
        "val": {21: "train2017", 22: "val2017"},
    }.items():
        document = {
            "info": {},
            "annotations": [
                {
                    "id": 100 * image_id + number,
                    "image_id": image_id,
                    "category_id": number,
                    "bbox": [1, 2, 10, 20],
                    "area": 200.0,
                    "segmentation": [[1, 2, 11, 2, 11, 22, 1, 22]],
                }
                for image_id in places
                for number in (1, 3, 13)
            ],
            "images": [
                {
                    "id": image_id,
                    "width": 40,
                    "height": 30,
                    "coco_url": f"http://images.cocodataset.org/{place}/{image_id:012d}.jpg",
                    "neg_category_ids": [5],
                    "not_exhaustive_category_ids": [],
                }
                for image_id, place in places.items()
            ],
            "licenses": [],
            "categories": [{**row, "image_count": 1} for row in LVIS_CATEGORIES],
        }
        file = root / "lvis" / f"lvis_v1_{split}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(document))
        for image_id, place in places.items():
            write_picture(root / "coco" / place / f"{image_id:012d}.jpg")
    return root
