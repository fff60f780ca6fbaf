"""Made-up scenes in COCO's and LVIS's formats, and the detections of a model that errs."""

import copy
import itertools
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from pycocotools import mask as mask_util

from clipself_d2.evaluation import CocoOVEvaluator

HEIGHT, WIDTH = 120, 160
CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox")
NOVEL = ("bee", "elk")
# Not in the order of the classes, and with gaps, as COCO's ids have them.
CATEGORY_IDS = (7, 3, 11, 20, 5, 14)
NO_TRUTH = "fox"


@dataclass
class World:
    """An annotation file's content, and detections of its images."""

    annotations: dict[str, Any]
    inputs: list[dict[str, Any]] = field(default_factory=list)
    outputs: list[dict[str, Instances]] = field(default_factory=list)
    classes: ClassVar[tuple[str, ...]] = CLASSES
    novel: ClassVar[tuple[str, ...]] = NOVEL
    category_ids: ClassVar[tuple[int, ...]] = CATEGORY_IDS

    def emptied(self) -> "World":
        """The same images with a model that finds nothing."""
        return World(self.annotations, self.inputs, [{"instances": none()} for _ in self.inputs])

    def without(self, name: str) -> "World":
        """The same model, blind to one class."""
        label = CLASSES.index(name)
        found = [output["instances"] for output in self.outputs]
        outputs = [{"instances": each[each.pred_classes != label]} for each in found]
        return World(self.annotations, self.inputs, outputs)

    def without_masks(self) -> "World":
        """The same model without masks."""
        outputs = copy.deepcopy(self.outputs)
        for output in outputs:
            output["instances"].remove("pred_masks")
        return World(self.annotations, self.inputs, outputs)

    def perfect(self, shift: int = 0) -> "World":
        """A model that finds the truth and calls it by the class ``shift`` places on."""
        outputs = []
        for item in self.inputs:
            own = [a for a in self.annotations["annotations"] if a["image_id"] == item["image_id"]]
            labels = [CATEGORY_IDS.index(a["category_id"]) for a in own]
            outputs.append(
                {
                    "instances": instances(
                        np.array([a["bbox"] for a in own], dtype=float).reshape(-1, 4),
                        np.full(len(own), 0.9),
                        np.array([(label + shift) % len(CLASSES) for label in labels], dtype=int),
                        np.array([mask_util.decode(a["segmentation"]) for a in own]),
                    )
                }
            )
        return World(self.annotations, self.inputs, outputs)


def none() -> Instances:
    """Return detections of nothing, with masks."""
    return instances(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), np.zeros((0, HEIGHT, WIDTH)))


def instances(
    boxes_xywh: np.ndarray, scores: np.ndarray, labels: np.ndarray, masks: np.ndarray
) -> Instances:
    """Return detections in Detectron2's form."""
    corners = np.concatenate([boxes_xywh[:, :2], boxes_xywh[:, :2] + boxes_xywh[:, 2:]], axis=1)
    return Instances(
        (HEIGHT, WIDTH),
        pred_boxes=Boxes(torch.from_numpy(corners).to(torch.float64)),
        scores=torch.from_numpy(scores),
        pred_classes=torch.from_numpy(labels),
        pred_masks=torch.from_numpy(masks.reshape(-1, HEIGHT, WIDTH)).to(torch.bool),
    )


def ellipse(box_xywh: np.ndarray) -> np.ndarray:
    """Return the (H, W) mask of an ellipse that fills a box."""
    x, y, w, h = box_xywh
    rows, columns = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    inside = ((columns - x) / w - 0.5) ** 2 + ((rows - y) / h - 0.5) ** 2 <= 0.25
    return inside.astype(np.uint8)


def encode(mask: np.ndarray) -> dict[str, Any]:
    """Return a mask as run lengths that JSON can hold."""
    rle = mask_util.encode(np.asfortranarray(mask))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


def random_boxes(rng: np.random.Generator, number: int) -> np.ndarray:
    """Return (number, 4) XYWH boxes of all sizes inside the picture."""
    size = rng.uniform(0.08, 0.95, (number, 2)) * (WIDTH, HEIGHT)
    corner = rng.uniform(0, 1, (number, 2)) * ((WIDTH, HEIGHT) - size)
    return np.concatenate([corner, size], axis=1)


def separate_boxes(rng: np.random.Generator) -> np.ndarray:
    """Return 8 XYWH boxes that do not touch one another."""
    cells = [(x, y) for x in range(0, WIDTH, 40) for y in range(0, HEIGHT, 60)]
    corner = np.array(cells) + rng.uniform(0, 6, (len(cells), 2))
    return np.concatenate([corner, rng.uniform(15, 33, (len(cells), 2))], axis=1)


def _annotate(
    rng: np.random.Generator, image_id: int, crowds: bool, apart: bool
) -> list[dict[str, Any]]:
    known = [i for i, name in zip(CATEGORY_IDS, CLASSES, strict=True) if name != NO_TRUTH]
    annotations = []
    for box in separate_boxes(rng) if apart else random_boxes(rng, 7):
        mask = ellipse(box)
        annotations.append(
            {
                "image_id": image_id,
                "category_id": int(rng.choice(known)),
                "bbox": box.tolist(),
                "area": float(mask.sum()),
                "iscrowd": int(crowds and rng.random() < 0.15),
                "segmentation": encode(mask),
            }
        )
    return annotations


def _detect(rng: np.random.Generator, truth: list[dict[str, Any]]) -> Instances:
    boxes = np.array([a["bbox"] for a in truth for _ in range(3)])
    boxes[:, :2] += rng.normal(0, 4, (len(boxes), 2))
    boxes[:, 2:] *= np.exp(rng.normal(0, 0.2, (len(boxes), 2)))
    boxes = np.concatenate([boxes, random_boxes(rng, 6)])
    labels = np.array([CATEGORY_IDS.index(a["category_id"]) for a in truth for _ in range(3)])
    labels = np.concatenate([labels, rng.integers(0, len(CLASSES), 6)])
    wrong = rng.random(len(labels)) < 0.25
    labels[wrong] = rng.integers(0, len(CLASSES), int(wrong.sum()))
    # Two decimals, so that scores tie now and then.
    scores = np.round(rng.random(len(boxes)), 2)
    return instances(boxes, scores, labels, np.array([ellipse(box) for box in boxes]))


def make_world(
    seed: int, *, num_images: int = 6, crowds: bool = True, lvis: bool = False, apart: bool = False
) -> World:
    """Draw scenes and detections; the class ``NO_TRUTH`` has no object anywhere.

    Args:
        seed: Of everything drawn.
        num_images: Number of images.
        crowds: Whether some objects are crowds; never in LVIS, which knows none.
        lvis: Whether to add the keys of LVIS.
        apart: Whether objects keep clear of one another.
    """
    rng = np.random.default_rng(seed)
    categories = [
        {"id": category_id, "name": name, "frequency": "crffrc"[index]}
        for index, (category_id, name) in enumerate(zip(CATEGORY_IDS, CLASSES, strict=True))
    ]
    world = World({"images": [], "annotations": [], "categories": categories})
    for image_id in range(101, 101 + num_images):
        image = {"id": image_id, "height": HEIGHT, "width": WIDTH, "file_name": f"{image_id}.jpg"}
        truth = _annotate(rng, image_id, crowds and not lvis, apart)
        if lvis:
            absent = set(CATEGORY_IDS) - {a["category_id"] for a in truth}
            image["neg_category_ids"] = sorted(i for i in absent if rng.random() < 0.6)
            present = {a["category_id"] for a in truth}
            image["not_exhaustive_category_ids"] = sorted(i for i in present if rng.random() < 0.3)
        world.annotations["images"].append(image)
        world.annotations["annotations"] += truth
        world.inputs.append({"image_id": image_id, "height": HEIGHT, "width": WIDTH})
        world.outputs.append({"instances": _detect(rng, truth)})
    for number, annotation in enumerate(world.annotations["annotations"], start=1):
        annotation["id"] = number
    return world


@pytest.fixture
def register(tmp_path: Path, catalogs: None) -> Callable[..., str]:
    """Write an annotation file and register its metadata for one test."""
    numbers = itertools.count()

    def add(annotations: object, **metadata: Any) -> str:
        name = f"evaluation_test_{next(numbers)}"
        path = tmp_path / f"{name}.json"
        path.write_text(
            annotations if isinstance(annotations, str) else json.dumps(annotations),
            encoding="ascii",
        )
        contiguous = {category_id: index for index, category_id in enumerate(CATEGORY_IDS)}
        known = {
            "json_file": str(path),
            "thing_classes": list(CLASSES),
            "thing_dataset_id_to_contiguous_id": contiguous,
            "novel_classes": list(NOVEL),
        }
        MetadataCatalog.get(name).set(**(known | metadata))
        return name

    return add


@pytest.fixture
def draw_world() -> Callable[..., World]:
    """The maker of scenes."""
    return make_world


@pytest.fixture
def run() -> Callable[..., dict[str, Any]]:
    """The evaluation loop."""
    return run_evaluator


@pytest.fixture
def score(register: Callable[..., str]) -> Callable[..., dict[str, Any]]:
    """Function that scores a world by an evaluator of some kind, in one process."""

    def judge(
        world: World, kind: Any = CocoOVEvaluator, metadata: dict | None = None, **options: Any
    ) -> dict[str, Any]:
        name = register(world.annotations, **(metadata or {}))
        return run_evaluator(kind(name, distributed=False, **options), world)

    return judge


@pytest.fixture
def messages() -> Iterator[list[str]]:
    """What the evaluators log, whatever the logging is set up to."""
    texts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: texts.append(record.getMessage())  # type: ignore[method-assign]
    package = logging.getLogger("clipself_d2.evaluation")
    level = package.level
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    yield texts
    package.setLevel(level)
    package.removeHandler(handler)


def run_evaluator(evaluator: Any, world: World, batch_size: int = 1) -> dict[str, Any]:
    """Feed a world to an evaluator as Detectron2's loop does; detections stay untouched."""
    evaluator.reset()
    outputs = copy.deepcopy(world.outputs)
    for start in range(0, len(world.inputs), batch_size):
        stop = start + batch_size
        evaluator.process(world.inputs[start:stop], outputs[start:stop])
    return evaluator.evaluate()
