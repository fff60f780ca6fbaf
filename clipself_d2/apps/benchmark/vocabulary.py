"""Work that grows with the vocabulary: prompts, the box predictor, and scoring of LVIS's size."""

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor

from clipself_d2.apps.benchmark.measure import Step
from clipself_d2.detection import OpenVocabFastRCNNOutputLayers
from clipself_d2.detection.output_layers import CLIP_FIELD
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.vocabulary.embeddings import SentenceEncoder

# LVIS v1 val.
NUM_IMAGES, NUM_DETECTIONS = 19_809, 450_000
FREQUENCIES = "r" * 337 + "c" * 461 + "f" * 405
# Regions of an image for the box predictor, in training and at test time.
HEAD_REGIONS = {"training": 512, "inference": 1000}
_HEAD_WIDTH, _HEAD_IMAGE = 512, 1024
_DATASET = "clipself_d2_benchmark_lvis"
_OBJECTS, _SIDE = 12, 640


class OneByOne:
    """A sentence encoder that gives the text tower a sentence at a time."""

    def __init__(self, encoder: SentenceEncoder) -> None:
        self.encoder = encoder

    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return (T, D) unit-norm float32 embeddings."""
        return torch.cat([self.encoder.encode([text]) for text in texts])


def build_head(num_classes: int, device: str, task: str) -> Step:
    """Make a run of F-ViT's box predictor over random classes, three quarters of them base.

    Training is forward, losses and backward of 512 regions, a quarter of them objects; inference is
    forward, fused scores and NMS of 1000.
    """
    torch.manual_seed(0)
    classifier = TextClassifier(
        embeddings_KD=torch.randn(num_classes, _HEAD_WIDTH),
        base_mask_K=torch.arange(num_classes) % 4 != 3,
        background=torch.randn(_HEAD_WIDTH),
    )
    predictor = OpenVocabFastRCNNOutputLayers(
        ShapeSpec(channels=_HEAD_WIDTH),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        classifier=classifier,
        test_score_thresh=0.01,
        test_nms_thresh=0.4,
        test_topk_per_image=100,
    ).to(device)
    count = HEAD_REGIONS[task]
    corner = torch.rand(count, 2) * 0.7 * _HEAD_IMAGE
    side = 8 + torch.rand(count, 2) * 0.3 * _HEAD_IMAGE
    proposals = Instances((_HEAD_IMAGE, _HEAD_IMAGE))
    proposals.proposal_boxes = Boxes(torch.cat([corner, corner + side], dim=1).to(device))
    proposals.gt_boxes = proposals.proposal_boxes
    # Class K is the background.
    is_object = torch.arange(count, device=device) % 4 == 0
    proposals.gt_classes = torch.where(is_object, 0, num_classes)
    proposals.set(CLIP_FIELD, F.normalize(torch.randn(count, _HEAD_WIDTH)).to(device))
    features = torch.randn(count, _HEAD_WIDTH, device=device)

    def train() -> None:
        features.requires_grad_()
        with EventStorage():
            losses = predictor.losses(predictor(features), [proposals])
        torch.stack(list(losses.values())).sum().backward()
        predictor.zero_grad()
        features.grad = None

    @torch.no_grad()
    def test() -> None:
        predictor.inference(predictor(features), [proposals])

    return test if task == "inference" else train


@contextmanager
def lvis_dataset(scale: float) -> Iterator[tuple[str, list[tuple[int, Instances]]]]:
    """Register a made-up LVIS val for the time of a with block.

    Twelve objects an image, with a long tail of classes as LVIS has, but here the first classes are
    the most frequent; detections are shifted objects, a third of them under a wrong class.

    Args:
        scale: Share of LVIS val, in (0, 1].

    Yields:
        Its name, and the detections by image id.
    """
    rng = np.random.default_rng(0)
    num_images, num_classes = math.ceil(NUM_IMAGES * scale), len(FREQUENCIES)
    count = num_images * _OBJECTS
    corner = rng.uniform(0, 0.7 * _SIDE, (count, 2))
    boxes = np.concatenate([corner, rng.uniform(8, 0.3 * _SIDE, (count, 2))], axis=1).round(2)
    classes = (num_classes * rng.power(0.4, count)).astype(int)
    found = _detections(rng, boxes, classes, math.ceil(NUM_DETECTIONS * scale))
    content = _annotations(boxes, classes.reshape(-1, _OBJECTS) + 1)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "lvis_val.json"
        path.write_text(json.dumps(content), encoding="ascii")
        MetadataCatalog.pop(_DATASET, None)
        MetadataCatalog.get(_DATASET).set(
            json_file=str(path),
            thing_classes=[f"class {number}" for number in range(num_classes)],
            evaluator_type="lvis_ov",
        )
        try:
            yield _DATASET, found
        finally:
            MetadataCatalog.pop(_DATASET, None)


def _detections(
    rng: np.random.Generator, boxes: np.ndarray, classes: np.ndarray, count: int
) -> list[tuple[int, Instances]]:
    chosen = np.sort(rng.integers(0, len(boxes), count))
    labels, wrong = classes[chosen], rng.random(count) < 1 / 3
    labels[wrong] = rng.integers(0, len(FREQUENCIES), wrong.sum())
    shifted = boxes[chosen] + rng.normal(0, 6, (count, 4))
    # Boxes are XYWH until here below; a side stays 2 px at least.
    shifted[:, 2:] = shifted[:, 2:].clip(2)
    scores = torch.from_numpy(rng.random(count))
    corners = torch.from_numpy(np.concatenate([shifted[:, :2], shifted[:, :2] + shifted[:, 2:]], 1))
    numbers, starts = np.unique(chosen // _OBJECTS, return_index=True)
    found = []
    for number, rows in zip(numbers, np.split(np.arange(count), starts[1:]), strict=True):
        instances = Instances((_SIDE, _SIDE))
        instances.pred_boxes = Boxes(corners[rows].float())
        instances.scores, instances.pred_classes = scores[rows], torch.from_numpy(labels[rows])
        found.append((int(number) + 1, instances))
    return found


def _annotations(boxes: np.ndarray, classes: np.ndarray) -> dict[str, list[dict]]:
    """An LVIS file of (N, 12) category ids and as many boxes."""
    rng = np.random.default_rng(1)
    images: list[dict] = []
    annotations: list[dict] = []
    for number, own in enumerate(classes.tolist(), start=1):
        # LVIS scores a class on the pictures that have it or that are known to lack it.
        absent = set((rng.choice(len(FREQUENCIES), 4, replace=False) + 1).tolist()) - set(own)
        image = {"id": number, "width": _SIDE, "height": _SIDE, "neg_category_ids": sorted(absent)}
        images.append({**image, "not_exhaustive_category_ids": own[:1]})
        for label in own:
            box = boxes[len(annotations)].tolist()
            row = {"id": len(annotations) + 1, "image_id": number, "category_id": label}
            annotations.append({**row, "bbox": box, "area": box[2] * box[3]})
    categories = [
        {"id": number, "name": f"class {number - 1}", "frequency": letter}
        for number, letter in enumerate(FREQUENCIES, start=1)
    ]
    return {"images": images, "annotations": annotations, "categories": categories}
