"""RegionCLIP: a CLIP learns region features from captions and the concepts that a teacher sees.

Legend: R regions of the batch, N images, C concepts, D joint embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from clipself_d2.clip import TextEncoder
from clipself_d2.data.items import check_items
from clipself_d2.distillation.base import TOOL, Item, Losses, RegionDistiller, Scene, Towers
from clipself_d2.distillation.regionclip_batch import (
    BatchShare,
    PictureRows,
    RegionTargets,
    gather_rows,
)
from clipself_d2.distillation.regionclip_build import regionclip_parts
from clipself_d2.distillation.regionclip_losses import (
    concept_contrastive,
    image_text_contrastive,
    pseudo_labels,
    region_distillation,
)
from clipself_d2.distillation.regions import RegionFeatures, RegionProposer, whole_frame

# Difference of normalised pixels below which two statistics are one.
_SAME_PIXELS = 1e-3


@dataclass(frozen=True)
class LossWeights:
    """Weights of the losses; 0 switches one off.

    Attributes:
        distill: Of the distillation of the teacher's distribution over the concepts.
        contrastive: Of the contrast of regions with the concepts of the batch.
        image_text: Of the contrast of pictures and captions.

    Raises:
        ValueError: If one is negative or all are 0.
    """

    distill: float = 1.0
    contrastive: float = 1.0
    image_text: float = 1.0

    def __post_init__(self) -> None:
        """Check the weights."""
        weights = (self.distill, self.contrastive, self.image_text)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                f"MODEL.REGIONCLIP.LOSS_WEIGHTS is {weights}; none may be negative, and one must "
                "be above 0"
            )

    @property
    def regions(self) -> bool:
        """Whether a region-level loss is on."""
        return self.distill > 0 or self.contrastive > 0


_EQUAL_WEIGHTS = LossWeights()


class RegionCLIPPretrainer(RegionDistiller):
    """Student that is pre-trained on captioned pictures without boxes of classes.

    Three losses: the student's distribution over the concepts follows the teacher's, regions are
    contrasted with the concepts that the teacher gives to the batch's regions, and pictures with
    their captions. Student and teacher may be different CLIPs, ViTs or ResNets; each sees pixels
    normalised by its own statistics.

    Args:
        towers: Student and teacher, as of ``RegionDistiller``.
        text: The student's text tower, frozen here.
        concepts_CD: The student's embeddings of the concepts; normalised here.
        teacher_concepts_CD: The teacher's embeddings of the same concepts.
        proposer: Source of regions; None where the items bring ``boxes``.
        teacher_regions: What the teacher sees of a region: "roi" of the whole picture, as
            published, or "crop".
        temperature: Divisor of every cosine.
        concept_threshold: Probability that the teacher's best concept of a region must exceed.
        weights: Weights of the losses.

    Reference: RegionCLIP, arXiv 2112.09106, section 3. Differs: the picture's own feature is
    pooled over its own frame (the published code pools over the padding of the batch too); softmax
    and logarithm are taken together; images a process are not cut to the fewest of all processes;
    region losses are averaged over the regions of all processes.
    """

    concepts_CD: Tensor
    teacher_concepts_CD: Tensor
    teacher_scale: Tensor
    teacher_shift: Tensor

    @configurable
    def __init__(
        self,
        *,
        towers: Towers,
        text: TextEncoder,
        concepts_CD: Tensor,
        teacher_concepts_CD: Tensor,
        proposer: RegionProposer | None = None,
        teacher_regions: str = "roi",
        temperature: float = 0.01,
        concept_threshold: float = 0.1,
        weights: LossWeights = _EQUAL_WEIGHTS,
    ) -> None:
        super().__init__(towers=towers)
        self.teacher_regions, self.weights = teacher_regions, weights
        self.temperature, self.concept_threshold = temperature, concept_threshold
        tables = {"concepts_CD": concepts_CD, "teacher_concepts_CD": teacher_concepts_CD}
        for name, table in tables.items():
            self.register_buffer(name, F.normalize(table.float(), dim=1), persistent=False)
        # Two CLIPs do not embed the concepts alike, even where they are equally wide.
        one_space = torch.equal(concepts_CD, teacher_concepts_CD)
        self.one_clip = one_space and self.teacher.name == self.student.name
        self.text = text.eval()
        self.text.requires_grad_(False)
        self.proposer = proposer
        self._register_teacher_view()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.DISTILL, MODEL.REGIONCLIP and MODEL.VOCABULARY."""
        keys = cfg.MODEL.REGIONCLIP
        if len(keys.LOSS_WEIGHTS) != 3:
            raise ValueError(
                f"MODEL.REGIONCLIP.LOSS_WEIGHTS is {keys.LOSS_WEIGHTS}; it takes three weights: of "
                "distillation, of the contrast with concepts, of that with captions"
            )
        return {
            **regionclip_parts(cfg),
            "teacher_regions": keys.TEACHER_REGIONS,
            "weights": LossWeights(*keys.LOSS_WEIGHTS),
        }

    def _register_teacher_view(self) -> None:
        """Keep what turns the student's normalised pixels into the teacher's."""
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self.teacher.pixel_mean, self.teacher.pixel_std)
        )
        scale, shift = self.pixel_std / std, (self.pixel_mean - mean) / std
        if bool((scale - 1).abs().max() < _SAME_PIXELS) and bool(shift.abs().max() < _SAME_PIXELS):
            # Statistics that a recipe has rounded.
            scale, shift = torch.ones_like(scale), torch.zeros_like(shift)
        self.register_buffer("teacher_scale", scale, persistent=False)
        self.register_buffer("teacher_shift", shift, persistent=False)

    def _for_teacher(self, pixels: Tensor) -> Tensor:
        return pixels * self.teacher_scale + self.teacher_shift

    def preprocess_crops(self, items: Sequence[Item], key: str) -> Tensor:
        """Join the crops of a batch as the teacher sees them.

        Args:
            items: The batch.
            key: "crops".

        Returns:
            As ``RegionDistiller``, normalised by the teacher's statistics.
        """
        return self._for_teacher(super().preprocess_crops(items, key))

    def forward(self, batched_inputs: list[Item]) -> Losses | list[dict[str, Tensor]]:
        """Pre-train, or embed regions.

        Args:
            batched_inputs: Items of ``DistillMapper``: ``image`` (3, H, W) uint8 RGB; ``boxes``
                (Ri, 4) XYXY px of it unless the proposer gives them; ``crops`` of them for a
                teacher on crops; and ``caption``; or a part of a batch from ``prepare_parts``.
                Items of ``RegionMapper`` outside training.

        Returns:
            In training the losses, otherwise as ``RegionDistiller``.

        Raises:
            ValueError: If the items are those of another loader.
        """
        items = self._fit(batched_inputs)
        if not self.training or (self.weights.regions and self.proposer is None):
            check_items(items, ("boxes",), self, TOOL)
        share: BatchShare | None = items[0].get("share")  # type: ignore[assignment]
        pictures: list[Tensor] = [item["image"] for item in items]  # type: ignore[misc]
        images = self.preprocess_images(pictures, share.size if share else (0, 0))
        features = RegionFeatures.extract(self.student, images)
        if not self.training:
            boxes = [self.moved(item["boxes"]) for item in items]  # type: ignore[arg-type]
            student_RD = F.normalize(features.pool(boxes), dim=1)
            return self._split(items, features.dense(), student_RD)
        losses: Losses = {}
        if self.weights.regions:
            if share is None:
                items = self._complete(items, images)
            regions = features.pool([item["boxes"] for item in items])  # type: ignore[misc]
            losses |= self.compute_losses(items, regions)
        if self.weights.image_text > 0:
            image_ND = self._embed_frames(pictures, features)
            if share is not None and share.rows is not None:
                loss = share.rows.loss(image_ND, self.temperature)
            else:
                image_ND, text_ND = gather_rows(image_ND), gather_rows(self._embed_captions(items))
                loss = image_text_contrastive(image_ND, text_ND, self.temperature)
            losses["loss_image_text"] = self.weights.image_text * loss
        return losses

    def _fit(self, items: Sequence[Item]) -> list[Item]:
        """Resize the pictures that come as they were read."""
        rest = [{key: item[key] for key in item if key != "longest_side"} for item in items]
        return [{**own, "image": self._fitted(i)} for own, i in zip(rest, items, strict=True)]

    @torch.no_grad()
    def prepare_parts(self, parts: Sequence[Sequence[Item]]) -> list[list[Item]]:
        """Let the parts of a batch know what their losses need of the whole, for accumulation.

        A first pass without gradient, after which the losses of the parts add up to those of the
        batch. Where the student is random in training (MODEL.CLIP.DROP_PATH), each pass draws anew.

        Args:
            parts: The batch in parts.

        Returns:
            The parts, for ``forward``.
        """
        fitted = [list(self._fit(part)) for part in parts]
        shapes = [item["image"].shape for part in fitted for item in part]  # type: ignore[attr-defined]
        size = (max(shape[1] for shape in shapes), max(shape[2] for shape in shapes))
        made, rows = [], []
        for items in fitted:
            pictures: list[Tensor] = [item["image"] for item in items]  # type: ignore[misc]
            images = self.preprocess_images(pictures, size)
            made.append(self._complete(items, images) if self.weights.regions else items)
            if self.weights.image_text > 0:
                features = RegionFeatures.extract(self.student, images)
                rows.append((self._embed_frames(pictures, features), self._embed_captions(items)))
        # Older torch keeps the weights that autocast has turned to half precision here, and they
        # would pass no gradient in the second pass.
        torch.clear_autocast_cache()
        none = [None] * len(made)
        targets = self._targets(made) if self.weights.regions else none
        found = PictureRows.of_parts(*map(list, zip(*rows, strict=True))) if rows else none
        for items, target, row in zip(made, targets, found, strict=True):
            items[0] = {**items[0], "share": BatchShare(size, target, row)}
        return made

    def compute_losses(
        self, items: list[Item], student_RD: Tensor, scene: Scene | None = None
    ) -> Losses:
        """Compare the student's regions with the teacher's, and with the concepts.

        Args:
            items: Items with ``teacher_regions`` (Ri, D'), the teacher's features.
            student_RD: (R, D) region features, any norm.
            scene: Not read.

        Returns:
            ``loss_region_distill`` and ``loss_concept``, each where it has a weight.
        """
        share: BatchShare | None = items[0].get("share")  # type: ignore[assignment]
        target = share.targets if share is not None else None
        if target is None:
            (target,) = self._targets([items])
        labels, kept = target.labels, student_RD[target.labels.keep]
        losses: Losses = {}
        if self.weights.distill > 0:
            each = region_distillation(kept, self.concepts_CD, labels.log_probs, self.temperature)
            losses["loss_region_distill"] = self.weights.distill * each.sum() / target.mean
        if self.weights.contrastive > 0:
            each = concept_contrastive(
                kept, self.concepts_CD, labels.targets, self.temperature, target.concepts_M
            )
            losses["loss_concept"] = self.weights.contrastive * each.sum() / target.mean
        return losses

    def _targets(self, parts: Sequence[Sequence[Item]]) -> list[RegionTargets]:
        """What the regions of each part learn, named by the teacher over the whole batch."""
        counts = [sum(len(item["boxes"]) for item in part) for part in parts]  # type: ignore[arg-type, misc]
        teacher = torch.cat([item["teacher_regions"] for part in parts for item in part])  # type: ignore[misc]
        labels = pseudo_labels(
            teacher,
            self.teacher_concepts_CD,
            threshold=self.concept_threshold,
            temperature=self.temperature,
        )
        mean = self.mean_count(len(labels.targets))
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("regionclip/num_regions", float(len(teacher)))
            storage.put_scalar("regionclip/num_kept", float(len(labels.targets)))
            storage.put_scalar("regionclip/num_concepts", float(len(labels.targets.unique())))
        return [RegionTargets(own, labels.targets, mean) for own in labels.split(counts)]

    def _embed_captions(self, items: Sequence[Item]) -> Tensor:
        missing = [item.get("file_name", "of the batch") for item in items if "caption" not in item]
        if missing:
            raise ValueError(
                f"image {missing[0]} has no caption; name a data set with captions in "
                "DATASETS.TRAIN, or set the last of MODEL.REGIONCLIP.LOSS_WEIGHTS to 0"
            )
        return self.text.encode([str(item["caption"]) for item in items])

    def _embed_frames(self, pictures: Sequence[Tensor], features: RegionFeatures) -> Tensor:
        """Unit-norm features of whole pictures, without the padding of the batch."""
        return F.normalize(features.pool([whole_frame(image) for image in pictures]), dim=1)

    @torch.no_grad()
    def _complete(self, items: list[Item], images: Tensor) -> list[Item]:
        """Add boxes where the proposer is to give them, and the teacher's features of regions."""
        if self.proposer is not None:
            items = self.proposer(items)
        boxes = [self.moved(item["boxes"]) for item in items]  # type: ignore[arg-type]
        if self.teacher_regions == "crop":
            teacher = self.embed_crops(items)
        else:
            teacher = RegionFeatures.extract(self.teacher, self._for_teacher(images)).pool(boxes)
        rows = teacher.split([len(found) for found in boxes])
        return [
            {**item, "boxes": found, "teacher_regions": features}
            for item, found, features in zip(items, boxes, rows, strict=True)
        ]
