"""How many pictures a loading process prepares, and how much of a batch is padding."""

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode, get_cfg
from PIL import Image

from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Row, Step, median_seconds
from clipself_d2.config import add_clipself_config
from clipself_d2.data.detection_mapper import build_train_mapper
from clipself_d2.data.distill_mapper import DistillMapper
from clipself_d2.data.region_sampler import RegionSampler

# A picture of COCO's commonest size, the student's side, the teacher's, and a grid of 13 tiles.
_PICTURE, _STUDENT, _CROP = (640, 480), 1024, 224
# Images a second of the step that is to be fed.
_STEP = 100
_BATCH, _NUM_PICTURES = 8, 4096
_MAPPERS: dict[str, dict[str, Any]] = {
    "distillation, all resized by the worker": {"crop_size": _CROP},
    "distillation, crops resized on the device": {"crop_size": None},
    "distillation, all resized on the device": {"crop_size": None, "resize_image": False},
}


def data_rows(options: BenchmarkOptions) -> list[Row]:
    """Time the mappers on one made-up JPEG, in turns; the first is the scale of the others."""
    with tempfile.TemporaryDirectory() as folder:
        record = _record(Path(folder))
        steps = {name: _distill_step(record, **kind) for name, kind in _MAPPERS.items()}
        steps["F-ViT"] = _detection_step(record)
        # Ten at a time, since one is over before a clock can tell.
        ten = {name: _repeat(step, 10) for name, step in steps.items()}
        seconds = {
            name: total / 10 for name, total in median_seconds(ten, options.repeats, "cpu").items()
        }
    first = next(iter(seconds.values()))
    return [
        {
            "mapper": name,
            "ms": 1000 * took,
            "pictures/s a worker": 1 / took,
            "speed ratio": first / took,
            f"workers for {_STEP}/s": int(np.ceil(_STEP * took)),
        }
        for name, took in seconds.items()
    ]


def padding_rows(_: BenchmarkOptions) -> list[Row]:
    """Count the padding of batches of 8 pictures of 4:3, three quarters of them broad."""
    broad = np.random.default_rng(0).random(_NUM_PICTURES) < 0.75
    sides = np.where(broad[:, None], (768, 1024), (1024, 768))
    apart = sides[np.argsort(broad, kind="stable")]
    return [
        {"batches": name, **_padding(order, square)}
        for name, order, square in (
            ("padded to squares", sides, True),
            ("padded to the largest sides", sides, False),
            ("of like aspect", apart, False),
        )
    ]


def _padding(sides_N2: np.ndarray, square: bool) -> Row:
    batches = sides_N2.reshape(-1, _BATCH, 2)
    largest = batches.max(axis=1)
    if square:
        # (batches, 2): both sides of a batch become its longest.
        largest = np.repeat(largest.max(axis=1, keepdims=True), 2, axis=1)
    used, total = int(sides_N2.prod(axis=1).sum()), int(_BATCH * largest.prod(axis=1).sum())
    return {
        "padded share": 1 - used / total,
        "pixels of squares": total / (len(sides_N2) * _STUDENT**2),
    }


def _record(folder: Path) -> Row:
    """A smooth picture with some noise, which a JPEG decodes as slowly as a photograph."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(_PICTURE)
    pixels = np.asarray(smooth) + rng.normal(0, 6, (*_PICTURE[::-1], 3))
    path = folder / "picture.jpg"
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    boxes: Sequence[Row] = [
        {"bbox": [40 * n, 30 * n, 100, 100], "bbox_mode": 1, "category_id": 0, "iscrowd": 0}
        for n in range(7)
    ]
    width, height = _PICTURE
    name = {"file_name": str(path), "image_id": 1}
    return {**name, "width": width, "height": height, "annotations": boxes}


def _distill_step(record: Row, **kind: object) -> Step:
    # A grid has a random number of tiles; this source always gives 13 boxes.
    sampler = RegionSampler(source="random", max_boxes=13, box_size_range=(100, 200))
    mapper = DistillMapper(sampler=sampler, **kind)  # type: ignore[arg-type]
    return lambda: mapper(record, np.random.default_rng(0), _STUDENT)


def _detection_step(record: Row) -> Step:
    cfg: CfgNode = get_cfg()
    add_clipself_config(cfg)
    cfg.INPUT.LSJ_SIZE = _STUDENT
    mapper = build_train_mapper(cfg)
    return lambda: mapper(record)


def _repeat(step: Step, times: int) -> Step:
    return lambda: [step() for _ in range(times)]
