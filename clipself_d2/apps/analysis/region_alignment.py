"""How well a tower names regions: its dense features against its embeddings of image crops.

Legend: N images, R regions, K classes, D joint embedding, h w patch grid.
"""

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.utils.logger import log_every_n_seconds
from torch import Tensor

from clipself_d2.apps.analysis.tower_spec import SPEC_FORM, TowerSpec, choose_device
from clipself_d2.clip import VisionTower
from clipself_d2.data.region_mapper import RegionMapper
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.layers.region_pool import mask_embeddings, roi_embeddings

logger = logging.getLogger(__name__)

EVALUATOR_TYPE = "region_classification"
# Crops that a tower embeds at once.
CROP_BATCH = 256

Item = Mapping[str, Any]


@dataclass(frozen=True)
class AlignmentOptions:
    """Settings that all towers of an analysis share.

    Attributes:
        sizes: Longest sides of the images that dense features are computed from, px.
        limit: Number of images, the first of the data set; 0 takes all.
        batch_size: Images at a time; it changes no figure.
        pad_to_square: Whether images are padded to a square, as published, or keep their shape.
        templates: Prompt set; "" takes that of the CLIP.
        precision: Number type of the towers: fp32, bf16 or auto.
        device: Where they work; "" is the accelerator of this machine, or its CPU.
        num_workers: Processes that read images.
        forms: Names of the forms of dense features.
    """

    sizes: tuple[int, ...]
    limit: int = 0
    batch_size: int = 1
    pad_to_square: bool = True
    templates: str = ""
    precision: str = "fp32"
    device: str = ""
    num_workers: int = 0
    forms: tuple[str, ...] = ("clipself", "attention")

    def __post_init__(self) -> None:
        """Check the numbers."""
        if min(self.batch_size, *self.sizes) < 1 or self.limit < 0:
            raise ValueError("--sizes and --batch-size are positive, --limit is 0 for all or more")


class AlignmentRow(NamedTuple):
    """Accuracy of one kind of region embedding of a tower.

    Attributes:
        tower: Label of the tower.
        embedding: "roi" and "mask" of dense features, or "crop".
        form: Form of dense features; "" for crops, which take the block as trained.
        size: Longest side of the input, px; of crops, the side of a crop.
        split: "thing", "stuff", and "thing.novel" and "thing.base" where these are known.
        macc1: Macro mean over classes of the top-1 accuracy, percent.
        macc5: That of the top-5 accuracy.
        images: Number of images.
    """

    tower: str
    embedding: str
    form: str
    size: int
    split: str
    macc1: float
    macc5: float
    images: int


@torch.no_grad()
def embed_dense(
    tower: VisionTower, items: Sequence[Item], *, form: str, square_size: int = 0
) -> list[dict[str, Tensor]]:
    """Pool a tower's dense features over regions.

    Args:
        tower: The tower.
        items: Of ``RegionMapper``.
        form: Name of the form of dense features.
        square_size: Side to which images are padded with black at the right and the bottom, px;
            0 pads to whole patches only.

    Returns:
        A dict for each image with ``roi`` and ``mask``, (R, D) unit-norm float32. Images of
        different shapes are passed on apart, so that no figure depends on the batch.
    """
    shapes = defaultdict(list)
    for number, item in enumerate(items):
        height, width = item["image"].shape[1:]
        shapes[square_size or height, square_size or width].append(number)
    outputs: list[dict[str, Tensor]] = [{} for _ in items]
    for (height, width), numbers in shapes.items():
        pixels = prepare_pixels(
            tower, [items[number]["image"] for number in numbers], height, width
        )
        dense = tower.forward_dense(pixels, form=form).embedding
        for number, one in zip(numbers, dense.split(1), strict=True):
            boxes = items[number]["boxes"].to(one.device)
            masks = items[number]["masks"].to(one.device)
            outputs[number] = {
                "roi": roi_embeddings(one, [boxes], tower.patch_size),
                "mask": mask_embeddings(one, [masks]),
            }
    return outputs


@torch.no_grad()
def embed_crops(tower: VisionTower, items: Sequence[Item]) -> list[dict[str, Tensor]]:
    """Embed crops of regions as whole pictures: a ``crop`` (R, D) float32 for each image."""
    crops = torch.cat([item["crops"] for item in items])
    parts = [torch.zeros(0, tower.embed_dim)]
    for chunk in crops.split(CROP_BATCH):
        if len(chunk):
            pixels = prepare_pixels(tower, list(chunk), *chunk.shape[2:])
            parts.append(tower.forward_image(pixels).cpu())
    counts = [len(item["crops"]) for item in items]
    return [{"crop": rows} for rows in torch.cat(parts).split(counts)]


def measure_alignment(
    dataset_name: str, specs: Sequence[TowerSpec], options: AlignmentOptions
) -> list[AlignmentRow]:
    """Classify the regions of a data set by crops and by dense features.

    Args:
        dataset_name: Registered data set with panoptic ground truth.
        specs: The towers.
        options: Sizes and settings.

    Returns:
        Rows by tower: first crops, cut from the original picture and scaled to the tower's native
        size whatever the input's, then dense features by size and form.

    Reference: CLIPSelf, arXiv 2310.01403, figure 1 and section 4.1. Differs: crops are embedded by
    the tower that is analysed, so that a distilled tower's own crops are seen; name its teacher
    beside it for the ceiling that it was trained on.
    """
    labels = [spec.label for spec in specs]
    if len(set(labels)) != len(labels):
        raise ValueError(f"towers share a label among {labels}; write {SPEC_FORM}")
    records, names = _read_regions(dataset_name, options.limit)
    device = choose_device(options.device)
    texts: dict[tuple[str, str], Tensor] = {}
    rows = []
    for spec in specs:
        tower = spec.load(precision=options.precision, device=device)
        key = (spec.name, spec.weights)
        if key not in texts:
            embeddings = spec.embed(names, templates=options.templates, device=device)
            texts[key] = embeddings.embeddings_KD
        for number, size in enumerate(options.sizes):
            # Crops have a size of their own: one round of them is enough.
            kinds = options.forms if number else ("", *options.forms)
            scorers = {
                kind: build_evaluator(dataset_name, None, text_embeddings=texts[key])
                for kind in kinds
            }
            _score(scorers, records, spec.label, tower, size, options)
            for kind, scorer in scorers.items():
                scores = scorer.evaluate().get("region", {})
                side = size if kind else tower.image_size
                rows += _rows(scores, spec.label, kind, side, len(records))
    if not rows:
        raise ValueError(f"the images of {dataset_name} show no region; raise --limit")
    return rows


def _score(
    scorers: Mapping[str, Any],
    records: list[dict[str, Any]],
    label: str,
    tower: VisionTower,
    size: int,
    options: AlignmentOptions,
) -> None:
    """Show the regions of a data set to scorers by form; "" is that of crops."""
    mapper = RegionMapper(
        image_size=size,
        crop_size=tower.image_size if "" in scorers else None,
        patch_size=tower.patch_size,
        pad_to_square=options.pad_to_square,
    )
    loader = build_detection_test_loader(
        records, mapper=mapper, batch_size=options.batch_size, num_workers=options.num_workers
    )
    square = size if options.pad_to_square else 0
    for scorer in scorers.values():
        scorer.reset()
    for count, items in enumerate(loader, start=1):
        for kind, scorer in scorers.items():
            if kind:
                output = embed_dense(tower, items, form=kind, square_size=square)
            else:
                output = embed_crops(tower, items)
            scorer.process(items, output)
        message = f"{label}, {size} px: {count}/{len(loader)} batches"
        log_every_n_seconds(logging.INFO, message, n=10)


def _rows(
    scores: Mapping[str, float], label: str, form: str, size: int, images: int
) -> list[AlignmentRow]:
    """Read ``<kind>.<split>.macc<top>`` of the evaluator."""
    rows = []
    for key, macc1 in scores.items():
        embedding, _, rest = key.partition(".")
        split, _, metric = rest.rpartition(".")
        if metric == "macc1":
            macc5 = scores[f"{embedding}.{split}.macc5"]
            rows.append(AlignmentRow(label, embedding, form, size, split, macc1, macc5, images))
    return rows


def _read_regions(dataset_name: str, limit: int) -> tuple[list[dict[str, Any]], list[str]]:
    """Records, and names of things and stuff, of a panoptic data set."""
    known = [
        name
        for name in DatasetCatalog.list()
        if MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE
    ]
    if dataset_name not in known:
        raise ValueError(
            f"--dataset {dataset_name} is not registered with evaluator_type {EVALUATOR_TYPE}; "
            f"these are: {', '.join(known) or 'none'}"
        )
    records = get_detection_dataset_dicts(
        [dataset_name], filter_empty=False, check_consistency=False
    )
    metadata = MetadataCatalog.get(dataset_name)
    names = [*metadata.thing_classes, *metadata.stuff_classes]
    return records[:limit] if limit else records, names


def prepare_pixels(tower: VisionTower, images: Sequence[Tensor], height: int, width: int) -> Tensor:
    """Pad images to whole patches, black at the right and the bottom, then normalise for a tower.

    Args:
        tower: The tower.
        images: (3, Hi, Wi) uint8 each.
        height: Least height, px.
        width: Least width, px.

    Returns:
        (N, 3, H, W) float32 on the tower's device.
    """
    patch = tower.patch_size
    height, width = -(-height // patch) * patch, -(-width // patch) * patch
    device = next(tower.parameters()).device
    batch = torch.zeros(len(images), 3, height, width, device=device)
    for canvas, image in zip(batch, images, strict=True):
        canvas[:, : image.shape[1], : image.shape[2]] = image.to(device)
    mean, std = (
        torch.tensor(values, device=device).view(3, 1, 1)
        for values in (tower.pixel_mean, tower.pixel_std)
    )
    return (batch - mean) / std
