"""What the web page shows of a picture, for any threshold, without asking the model again.

Legend: K classes, H W pixels, h w cells of the dense map.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import matplotlib
import numpy as np
import torch
import torch.nn.functional as F
from detectron2.structures import BitMasks, Instances
from PIL import Image
from torch import Tensor

from clipself_d2.apps.predict.detection_file import DetectionFile
from clipself_d2.apps.predict.segments import class_colour, make_labels, segments_of

# Legend of a drawing: parts, each a (H, W) mask or XYXY px, with their labels.
Parts: TypeAlias = list[tuple[Any, str]]
# Most boxes that are drawn, the best first.
MOST_BOXES = 60
_COLOUR_MAP, _OPACITY = "inferno", 0.65
# Share of the cells that heat maps draw alike, so that the colours are left to what stands out.
_LOW_END = 0.25
# Heat maps are drawn at least this wide, px.
_DRAWN_WIDTH = 640


@dataclass(frozen=True)
class PictureResult:
    """What a model said of one picture, on the CPU.

    Attributes:
        name: Name of its file.
        image: (H, W, 3) uint8 RGB.
        instances: Detections, or None.
        panoptic: (H, W) ids and their rows, or None.
        semantic: (H, W) best class of every pixel and its score, or None.
        heat_Khw: Likeness of every cell to every class, which covers the picture; or None.
        probability: (H, W) of an expression, or None.
        expression: That expression.
    """

    name: str
    image: np.ndarray
    instances: Instances | None = None
    panoptic: tuple[np.ndarray, list[dict[str, Any]]] | None = None
    semantic: tuple[np.ndarray, np.ndarray] | None = None
    heat_Khw: Tensor | None = None
    probability: np.ndarray | None = None
    expression: str = ""


def read_output(
    name: str, image: np.ndarray, output: dict[str, Any], heat_Khw: Tensor | None = None
) -> PictureResult:
    """Keep of a model's output what the page shows.

    Without ``heat_Khw`` the scores of ``sem_seg`` are taken in its place, where there are any.
    """
    semantic = None
    if "sem_seg" in output:
        best, labels = output["sem_seg"].max(0)
        semantic = (labels.cpu().numpy().astype(np.int32), best.cpu().numpy())
        heat_Khw = output["sem_seg"].cpu() if heat_Khw is None else heat_Khw
    return PictureResult(
        name,
        image,
        instances=output["instances"].to("cpu") if "instances" in output else None,
        panoptic=segments_of(output) if "panoptic_seg" in output else None,
        semantic=semantic,
        heat_Khw=heat_Khw,
    )


def box_parts(result: PictureResult, names: Sequence[str], least: float, masks: bool) -> Parts:
    """List boxes, or else masks, whose score is ``least`` or more, labelled as "dog 90%"."""
    found = result.instances
    if found is None or (masks and not found.has("pred_masks")):
        return []
    found = found[found.scores >= least]
    found = found[found.scores.argsort(descending=True)[:MOST_BOXES]]
    shapes = (
        list(found.pred_masks.numpy().astype(float))
        if masks
        else [tuple(map(int, box)) for box in found.pred_boxes.tensor.round().tolist()]
    )
    return list(zip(shapes, make_labels(found, names), strict=True))


def panoptic_parts(result: PictureResult, names: Sequence[str], least: float) -> Parts:
    """List segments by their class, a second dog as "dog 2"; those without a score are kept."""
    if result.panoptic is None:
        return []
    ids, rows = result.panoptic
    counts: Counter[str] = Counter()
    parts = []
    for row in rows:
        if row.get("score", 1.0) >= least:
            name = names[row["category_id"]]
            counts[name] += 1
            label = name if counts[name] == 1 else f"{name} {counts[name]}"
            parts.append(((ids == row["id"]).astype(float), label))
    return parts


def semantic_parts(result: PictureResult, names: Sequence[str], least: float) -> Parts:
    """List the pixels of every class as "sky 40%", its share of the picture."""
    if result.semantic is None:
        return []
    labels, scores = result.semantic
    # Where a negative word is the best, all scores are 0.
    labels = np.where((scores >= least) & (scores > 0), labels, -1)
    return [
        ((labels == number).astype(float), f"{names[number]} {(labels == number).mean():.0%}")
        for number in np.unique(labels[labels >= 0]).tolist()
    ]


def part_colours(parts: Parts, names: Sequence[str]) -> dict[str, str]:
    """Give every label, which begins with a class name, the colour of its class, as "#ff0040"."""
    # The longest name that fits: "dog house 90%" begins with "dog" too.
    by_length = sorted(range(len(names)), key=lambda number: -len(names[number]))
    colours = {}
    for _, label in parts:
        number = next((n for n in by_length if label.startswith(names[n])), 0)
        colours[label] = "#{:02x}{:02x}{:02x}".format(*class_colour(number))
    return colours


def heat_map(result: PictureResult, number: int) -> tuple[np.ndarray, float, float]:
    """Lay the likeness to one class over a picture: (H', W', 3) uint8 RGB.

    Returns also the likeness at the dark and at the bright end; these are the same for all classes,
    so that maps can be compared. Small pictures are enlarged.
    """
    assert result.heat_Khw is not None, "this result has no heat map"
    maps = result.heat_Khw.float()
    # torch.quantile refuses more than 16 million numbers.
    sample = maps.flatten()[:: max(1, maps.numel() // 1_000_000)]
    low, high = float(sample.quantile(_LOW_END)), float(maps.max())
    factor = max(1, -(-_DRAWN_WIDTH // result.image.shape[1]))
    height, width = (side * factor for side in result.image.shape[:2])
    image = np.asarray(Image.fromarray(result.image).resize((width, height)))
    enlarged = F.interpolate(maps[number][None, None], (height, width), mode="bilinear")[0, 0]
    share = ((enlarged.numpy() - low) / max(high - low, 1e-6)).clip(0, 1)
    colours = matplotlib.colormaps[_COLOUR_MAP](share)[..., :3] * 255
    mixed = (1 - _OPACITY) * image + _OPACITY * colours
    return mixed.round().astype(np.uint8), low, high


def expression_parts(result: PictureResult, least: float) -> Parts:
    """Show what an expression refers to: one part, or none."""
    if result.probability is None:
        return []
    mask = result.probability > least
    return [(mask.astype(float), result.expression)] if mask.any() else []


def write_coco(
    results: Sequence[PictureResult], names: Sequence[str], least: float, path: Path
) -> None:
    """Write what the page shows as a COCO json."""
    file = DetectionFile(names)
    for result in results:
        file.add(result.name, _as_instances(result, names, least))
    file.save(path)


def _as_instances(result: PictureResult, names: Sequence[str], least: float) -> Instances:
    """Detections, or else segments, classes of pixels or an expression, as instances."""
    if result.instances is not None and result.panoptic is None:
        return result.instances[result.instances.scores >= least]
    rows = list(_masks_of(result, names, least))
    masks = torch.zeros(len(rows), *result.image.shape[:2], dtype=torch.bool)
    for target, (mask, _, _) in zip(masks, rows, strict=True):
        target.copy_(torch.from_numpy(mask))
    return Instances(
        result.image.shape[:2],
        pred_boxes=BitMasks(masks).get_bounding_boxes(),
        scores=torch.tensor([score for _, _, score in rows]),
        pred_classes=torch.tensor([number for _, number, _ in rows], dtype=torch.long),
        pred_masks=masks,
    )


def _masks_of(
    result: PictureResult, names: Sequence[str], least: float
) -> Iterator[tuple[np.ndarray, int, float]]:
    """Masks that are not empty, their classes and scores."""
    if result.panoptic is not None:
        ids, segments = result.panoptic
        for row in segments:
            score = row.get("score", 1.0)
            if score >= least:
                yield ids == row["id"], row["category_id"], score
        return
    maps = [] if result.probability is None else [(result.probability > least, result.probability)]
    if result.semantic is not None:
        labels, scores = result.semantic
        shown = (scores >= least) & (scores > 0)
        maps = [((labels == number) & shown, scores) for number in range(len(names))]
    for number, (mask, scores) in enumerate(maps):
        if mask.any():
            yield mask, number, float(scores[mask].mean())
