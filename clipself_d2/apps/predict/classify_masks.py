"""Name the masks of any other model by a CLIP tower and typed words.

Legend: Q masks of a picture, K classes, D joint embedding, H W pixels.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from clipself_d2.apps.analysis.region_alignment import prepare_pixels
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.apps.predict.mask_files import MaskedPicture, check_sizes, read_mask_file
from clipself_d2.apps.predict.segments import PanopticFile, draw_segments
from clipself_d2.clip import VisionTower
from clipself_d2.data.pictures import fit_longest, to_tensor
from clipself_d2.evaluation.build import build_evaluator, panoptic_evaluators
from clipself_d2.layers.region_pool import mask_embeddings
from clipself_d2.parts.json_file import write_json
from clipself_d2.vocabulary import Vocabulary

logger = logging.getLogger(__name__)

RESULTS_FILE, SCORES_FILE = "results.json", "scores.json"


@dataclass(frozen=True)
class MaskNaming:
    """How masks are named.

    Attributes:
        size: Longest side of the picture as the tower sees it, px; 0 leaves it.
        pooling: "hard", "soft" (edges count by their share) or "tokens" (class tokens that attend
            to the mask's patches).
        scale: Multiplier of the cosine; changes scores, not names.
        templates: Prompt set; "" is the tower's.
        form: Name of the dense form; "" takes that of the tower's file, else clipself.
    """

    size: int = 0
    pooling: str = "hard"
    scale: float = 100.0
    templates: str = ""
    form: str = ""


@torch.no_grad()
def embed_masks(
    tower: VisionTower, pixels: np.ndarray, masks: np.ndarray, naming: MaskNaming
) -> Tensor:
    """Embed what a tower sees inside of (Q, H, W) bool masks of an (H, W, 3) uint8 RGB picture.

    Returns:
        (Q, D) float32 on the CPU, unit norm; zeros for masks that vanish on the tower's grid.
    """
    picture = Image.fromarray(pixels)
    if naming.size:
        picture = fit_longest(picture, naming.size)
    images = prepare_pixels(tower, [to_tensor(picture)], picture.height, picture.width)
    grid = [-(-side // tower.patch_size) for side in (picture.height, picture.width)]
    given = torch.from_numpy(masks).float()[None].to(images.device)
    if naming.pooling == "tokens":
        # A class token attends to every patch that its mask touches.
        inside = F.adaptive_max_pool2d(given, grid)[0] > 0
        embedding = F.normalize(tower.forward_regions(images, [inside]), dim=1)
        return (embedding * inside.flatten(1).any(1)[:, None]).cpu()
    share = F.interpolate(given, grid, mode="area")[0]
    # (Q, h, w) share of each cell that lies in the mask; hard takes or leaves the whole cell.
    weights = share if naming.pooling == "soft" else (share > 0.5).float()
    return mask_embeddings(tower.forward_dense(images).embedding, [weights]).cpu()


def name_masks(embedding_QD: Tensor, text_KD: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Choose a class for every mask: (Q,) its probability and (Q,) its number.

    Embeddings have unit norm, or are zero where a mask vanished; its probability is 0. ``scale``
    multiplies the cosines.
    """
    probabilities = (scale * embedding_QD @ text_KD.T).softmax(dim=1)
    score_Q, label_Q = probabilities.max(dim=1)
    return score_Q * embedding_QD.any(dim=1), label_Q


def classify_masks(
    spec: TowerSpec,
    source: Path,
    images: Path,
    vocabulary: Vocabulary,
    output: Path,
    *,
    maps: Path | None = None,
    naming: MaskNaming | None = None,
    dataset: str = "",
    device: torch.device | None = None,
) -> dict[str, dict[str, float]]:
    """Name masks, write them in the form they came in, draw them, and score them.

    Args:
        spec: The tower and its CLIP.
        source: Masks, as ``read_mask_file`` takes them.
        images: Folder of the pictures.
        vocabulary: The classes.
        output: Folder of the results: ``panoptic.json`` with its maps, or ``results.json``; a
            picture each in ``pictures/``; ``scores.json``.
        maps: Folder of a panoptic file's PNGs.
        naming: How; None takes the defaults.
        dataset: Registered data set whose truth the result is held against; "" scores nothing.
        device: Where the tower works.

    Returns:
        Scores by task, empty without a data set.
    """
    naming = naming or MaskNaming()
    kind, pictures = read_mask_file(source, images, maps)
    _check_dataset(dataset, vocabulary)
    text = spec.embed(vocabulary.names, templates=naming.templates, device=device)
    tower = spec.load(device=device, form=naming.form)
    writer = _Writer(kind, output, vocabulary, dataset)
    for picture in tqdm(pictures, unit="picture", mininterval=1.0):
        masks = picture.load()
        pixels = check_sizes(picture, masks)
        embedding = embed_masks(tower, pixels, masks, naming)
        score_Q, label_Q = name_masks(embedding, text.embeddings_KD, naming.scale)
        writer.add(picture, pixels, masks, score_Q.tolist(), label_Q.tolist())
    return writer.finish()


def _check_dataset(dataset: str, vocabulary: Vocabulary) -> None:
    if not dataset:
        return
    if dataset not in DatasetCatalog.list():
        raise ValueError(f"--dataset {dataset!r} is not registered")
    DatasetCatalog.get(dataset)
    metadata = MetadataCatalog.get(dataset)
    names = [*metadata.get("thing_classes", ()), *metadata.get("stuff_classes", ())]
    if tuple(names) != vocabulary.names:
        raise ValueError(
            f"--dataset {dataset} has {len(names)} classes, not the {vocabulary.num_classes} of "
            f"the vocabulary; to score, name its own by --vocabulary {dataset}"
        )


class _Writer:
    """Collects named masks, in the form they came in, and the evaluators of their truth."""

    def __init__(self, kind: str, output: Path, vocabulary: Vocabulary, dataset: str) -> None:
        self.names, self.output = vocabulary.names, output
        flags = vocabulary.thing_mask
        self.things = [True] * len(self.names) if flags is None else list(flags)
        self.results: list[dict[str, Any]] | None = [] if kind == "results" else None
        (output / "pictures").mkdir(parents=True, exist_ok=True)
        self.file = PanopticFile(output, self.names, self.things)
        self.ids = dict(enumerate(range(len(self.names))))
        self.evaluators = []
        self.records: dict[str, Mapping[str, Any]] = {}
        if dataset:
            metadata = MetadataCatalog.get(dataset)
            for key in ("thing", "stuff"):
                table = metadata.get(f"{key}_dataset_id_to_contiguous_id") or {}
                self.ids |= {number: dataset_id for dataset_id, number in table.items()}
            self.records = {Path(r["file_name"]).stem: r for r in DatasetCatalog.get(dataset)}
            if kind == "results":
                self.evaluators = [build_evaluator(dataset, str(output), tasks=("segm",))]
            else:
                self.evaluators = panoptic_evaluators(dataset, str(output))
        for evaluator in self.evaluators:
            evaluator.reset()
        self.unseen = 0

    def add(
        self,
        picture: MaskedPicture,
        pixels: np.ndarray,
        masks: np.ndarray,
        scores: Sequence[float],
        labels: Sequence[int],
    ) -> None:
        self.unseen += sum(score == 0 for score in scores)
        ids, rows = self._segments(masks, scores, labels)
        drawn = draw_segments(pixels, ids, rows, self.names)
        Image.fromarray(drawn).save(self.output / "pictures" / f"{picture.path.stem}.png")
        if self.results is None:
            self.file.add(picture.path.name, picture.path.stem, ids, rows)
        else:
            for row, score, label in zip(picture.rows, scores, labels, strict=True):
                score *= float(row.get("score", 1.0))
                self.results.append({**row, "category_id": self.ids[label], "score": score})
        if self.evaluators:
            self._score(picture, ids, rows, masks, scores, labels)

    def _segments(
        self, masks: np.ndarray, scores: Sequence[float], labels: Sequence[int]
    ) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """One id a mask, but one for all masks of a kind of stuff."""
        ids = np.zeros(masks.shape[1:], np.int32)
        rows: list[dict[str, Any]] = []
        stuff: dict[int, int] = {}
        for mask, score, label in zip(masks, scores, labels, strict=True):
            is_thing = self.things[label]
            if not is_thing and label in stuff:
                ids[mask] = stuff[label]
                continue
            rows.append(
                {"id": len(rows) + 1, "category_id": label, "isthing": is_thing, "score": score}
            )
            ids[mask] = rows[-1]["id"]
            if not is_thing:
                stuff[label] = rows[-1]["id"]
        # A later mask may hide an earlier one whole.
        shown = set(np.unique(ids).tolist())
        return ids, [row for row in rows if row["id"] in shown]

    def _score(
        self,
        picture: MaskedPicture,
        ids: np.ndarray,
        rows: list[dict[str, Any]],
        masks: np.ndarray,
        scores: Sequence[float],
        labels: Sequence[int],
    ) -> None:
        record = self.records.get(picture.path.stem)
        if record is None:
            raise ValueError(f"{picture.path} is no picture of the data set of --dataset")
        output: dict[str, Any] = {"panoptic_seg": (torch.from_numpy(ids), rows)}
        if self.results is not None:
            instances = Instances(masks.shape[1:])
            instances.pred_masks = torch.from_numpy(masks)
            given = [float(row.get("score", 1.0)) for row in picture.rows]
            instances.scores = torch.tensor(scores) * torch.tensor(given)
            instances.pred_classes = torch.tensor(labels)
            # Detectron2 wants boxes; masks alone are scored.
            instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
            output["instances"] = instances
        else:
            planes = torch.zeros(len(self.names), *ids.shape, dtype=torch.uint8)
            for row in rows:
                planes[row["category_id"]][torch.from_numpy(ids == row["id"])] = 1
            output["sem_seg"] = planes
        for evaluator in self.evaluators:
            evaluator.process([dict(record)], [output])

    def finish(self) -> dict[str, dict[str, float]]:
        if self.results is None:
            path = self.file.save()
        else:
            path = self.output / RESULTS_FILE
            write_json(path, self.results)
        logger.info("%s: masks with their names", path)
        if self.unseen:
            logger.warning(
                "%d masks are too small for the tower's grid and have the score 0; a larger --size "
                "sees more of them",
                self.unseen,
            )
        scores: dict[str, dict[str, float]] = {}
        for evaluator in self.evaluators:
            scores |= evaluator.evaluate() or {}
        if scores:
            write_json(self.output / SCORES_FILE, scores, indent=1)
        return scores
