"""RegionCLIP: a CLIP learns region features from captions and the concepts that a teacher sees.

Legend: R regions of the batch, N images, C concepts, D joint embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from clipself_d2.clip import TextEncoder
from clipself_d2.distillation.base import (
    Item,
    Losses,
    RegionDistiller,
    iteration_generator,
)
from clipself_d2.distillation.gather import gather_rows
from clipself_d2.distillation.region_features import RegionFeatures
from clipself_d2.distillation.regionclip_build import regionclip_parts
from clipself_d2.distillation.regionclip_losses import (
    PseudoLabels,
    concept_contrastive,
    image_text_contrastive,
    pseudo_labels,
    region_distillation,
)

TEACHER_REGIONS = ("roi", "crop")
# Difference of normalised pixels below which two statistics are one.
_SAME_PIXELS = 1e-3


@dataclass(frozen=True, kw_only=True)
class RegionCLIPOptions:
    """Switches of the pre-training.

    Attributes:
        teacher_regions: What the teacher sees of a region: "roi" of the whole picture, as
            published, or "crop".
        temperature: Divisor of every cosine.
        concept_threshold: Probability that the teacher's best concept of a region must exceed.
        distill_weight: Weight of the distillation of the teacher's distribution; 0: off.
        contrastive_weight: Weight of the contrast with the concepts of the batch; 0: off.
        image_text_weight: Weight of the contrast of pictures and captions; 0: off.
        max_regions: Most regions of an image that are drawn from the offline RPN's.
        crop_size: Side of the teacher's crops, px, where they come as they were cut; 0 is the
            tower's native size.
        crop_enlarge: Factor by which the teacher's crop of an offline RPN's region exceeds it.
        seed: Seed of that draw.

    Raises:
        ValueError: If the teacher's kind is unknown, a weight is negative or all are 0.
    """

    teacher_regions: str = "roi"
    temperature: float = 0.01
    concept_threshold: float = 0.1
    distill_weight: float = 1.0
    contrastive_weight: float = 1.0
    image_text_weight: float = 1.0
    max_regions: int = 100
    crop_size: int = 0
    crop_enlarge: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the switches."""
        if self.teacher_regions not in TEACHER_REGIONS:
            raise ValueError(
                f"MODEL.REGIONCLIP.TEACHER_REGIONS is {self.teacher_regions!r}; expected one of "
                f"{TEACHER_REGIONS}"
            )
        weights = (self.distill_weight, self.contrastive_weight, self.image_text_weight)
        if min(weights) < 0 or max(weights) == 0:
            raise ValueError(
                "MODEL.REGIONCLIP.DISTILL_WEIGHT, CONTRASTIVE_WEIGHT and IMAGE_TEXT_WEIGHT are "
                f"{weights}; none may be negative, and one must be above 0"
            )

    @property
    def uses_regions(self) -> bool:
        """Whether a region-level loss is on."""
        return self.distill_weight > 0 or self.contrastive_weight > 0


@META_ARCH_REGISTRY.register()
class RegionCLIPPretrainer(RegionDistiller):
    """Student that is pre-trained on captioned pictures without boxes of classes.

    Three losses: the student's distribution over the concepts follows the teacher's, regions are
    contrasted with the concepts that the teacher gives to the batch's regions, and pictures with
    their captions. Student and teacher may be different CLIPs, ViTs or ResNets; each sees pixels
    normalised by its own statistics.

    Args:
        text: The student's text tower, frozen here.
        concepts_CD: The student's embeddings of the concepts; normalised here.
        teacher_concepts_CD: The teacher's embeddings of the same concepts.
        rpn: Frozen source of regions, from pictures to Detectron2's Instances with
            ``proposal_boxes``; None where the items bring ``boxes``.
        options: Switches.
        parts: Arguments of ``RegionDistiller``; the towers may also be ResNets.

    Raises:
        ValueError: If a table's width is not its tower's, or the tables differ in length.

    Reference: RegionCLIP, arXiv 2112.09106, section 3. Differs: the picture's own feature is
    pooled over its own frame (the published code pools over the padding of the batch too); softmax
    and logarithm are taken together; images a process are not cut to the fewest of all processes;
    region losses are averaged over the regions of all processes.
    """

    one_embedding: ClassVar[bool] = False
    concepts_CD: Tensor
    teacher_concepts_CD: Tensor
    teacher_scale: Tensor
    teacher_shift: Tensor

    @configurable
    def __init__(
        self,
        *,
        text: TextEncoder,
        concepts_CD: Tensor,
        teacher_concepts_CD: Tensor,
        options: RegionCLIPOptions,
        rpn: nn.Module | None = None,
        **parts: Any,
    ) -> None:
        self.options = options
        super().__init__(**parts)
        tables = {"concepts_CD": concepts_CD, "teacher_concepts_CD": teacher_concepts_CD}
        for (name, table), tower in zip(tables.items(), (self.student, self.teacher), strict=True):
            if table.shape[1] != tower.embed_dim:
                raise ValueError(
                    f"concept embeddings are {table.shape[1]}-d but {tower.name} has "
                    f"{tower.embed_dim}-d features; check MODEL.REGIONCLIP.CONCEPT_EMBEDDINGS"
                )
            unit = F.normalize(table.float(), dim=1)
            self.register_buffer(name, unit, persistent=False)
        if len(concepts_CD) != len(teacher_concepts_CD):
            raise ValueError(
                f"the student has {len(concepts_CD)} concepts, the teacher "
                f"{len(teacher_concepts_CD)}; both need the pool of MODEL.REGIONCLIP.CONCEPTS"
            )
        self.text = text.eval()
        self.text.requires_grad_(False)
        self.rpn = rpn
        self._register_teacher_view()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.DISTILL, MODEL.REGIONCLIP and MODEL.VOCABULARY."""
        keys = cfg.MODEL.REGIONCLIP
        options = RegionCLIPOptions(
            teacher_regions=keys.TEACHER_REGIONS,
            temperature=keys.TEMPERATURE,
            concept_threshold=keys.CONCEPT_THRESHOLD,
            distill_weight=keys.DISTILL_WEIGHT,
            contrastive_weight=keys.CONTRASTIVE_WEIGHT,
            image_text_weight=keys.IMAGE_TEXT_WEIGHT,
            max_regions=cfg.INPUT.REGIONS.MAX_BOXES,
            crop_enlarge=cfg.INPUT.REGIONS.CROP_ENLARGE,
            seed=max(cfg.SEED, 0),
        )
        return {"options": options, **regionclip_parts(cfg)}

    @property
    def crop_size(self) -> int:
        """Side to which crops are resized here, px."""
        return self.options.crop_size or self.teacher.image_size

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

    def loss_weight(self, items: Sequence[Item]) -> float:
        """Tell how much a part of a batch counts against its other parts.

        Args:
            items: The part.

        Returns:
            Its number of pictures, since regions may not be known before the RPN has run.
        """
        return float(len(items))

    def train(self, mode: bool = True) -> "RegionCLIPPretrainer":
        """Switch the student's mode; teacher, text tower and RPN stay in evaluation mode.

        Args:
            mode: Whether to train.

        Returns:
            Self.
        """
        super().train(mode)
        self.text.eval()
        return self

    def forward(self, batched_inputs: list[Item]) -> Losses | list[dict[str, Tensor]]:
        """Pre-train, or embed regions.

        Args:
            batched_inputs: Items of ``CaptionMapper``: ``image`` (3, H, W) uint8 RGB; ``boxes``
                (Ri, 4) XYXY px of it unless the RPN gives them; ``crops`` of them for a teacher on
                crops; and ``caption``. Items of ``RegionMapper`` outside training.

        Returns:
            In training the losses, otherwise as ``RegionDistiller``; ``crop`` is left out where
            the teacher's embeddings are of another width than the student's.
        """
        images = self.preprocess_images([item["image"] for item in batched_inputs])  # type: ignore[misc]
        features = RegionFeatures.extract(self.student, images)
        if not self.training:
            boxes = [item["boxes"].to(self.device) for item in batched_inputs]  # type: ignore[attr-defined]
            student_RD = F.normalize(features.pool(boxes), dim=1)
            return self._split(batched_inputs, features.dense(), student_RD)
        losses: Losses = {}
        if self.options.uses_regions:
            items = self._complete(batched_inputs, images)
            regions = features.pool([item["boxes"] for item in items])  # type: ignore[misc]
            losses |= self.compute_losses(items, regions)
        if self.options.image_text_weight > 0:
            losses["loss_image_text"] = self._image_text_loss(batched_inputs, features)
        return losses

    def compute_losses(self, items: list[Item], student_RD: Tensor) -> Losses:
        """Compare the student's regions with the concepts that the teacher sees.

        Args:
            items: Items with ``teacher_regions`` (Ri, D'), the teacher's features.
            student_RD: (R, D) region features, any norm.

        Returns:
            ``loss_region_distill`` and ``loss_concept``, each where it has a weight.
        """
        options = self.options
        teacher = torch.cat([item["teacher_regions"] for item in items])  # type: ignore[misc]
        labels = pseudo_labels(
            teacher,
            self.teacher_concepts_CD,
            threshold=options.concept_threshold,
            temperature=options.temperature,
        )
        kept, mean = student_RD[labels.keep], self.mean_count(len(labels.targets))
        self._log(labels, len(teacher))
        losses: Losses = {}
        if options.distill_weight > 0:
            each = region_distillation(
                kept, self.concepts_CD, labels.log_probs, options.temperature
            )
            losses["loss_region_distill"] = options.distill_weight * each.sum() / mean
        if options.contrastive_weight > 0:
            each = concept_contrastive(kept, self.concepts_CD, labels.targets, options.temperature)
            losses["loss_concept"] = options.contrastive_weight * each.sum() / mean
        return losses

    def _image_text_loss(self, items: list[Item], features: RegionFeatures) -> Tensor:
        missing = [item.get("file_name", "of the batch") for item in items if "caption" not in item]
        if missing:
            raise ValueError(
                f"image {missing[0]} has no caption; name a data set with captions in "
                "DATASETS.TRAIN, or set MODEL.REGIONCLIP.IMAGE_TEXT_WEIGHT 0"
            )
        frames = [self._frame(item["image"]) for item in items]  # type: ignore[arg-type]
        image_ND = gather_rows(F.normalize(features.pool(frames), dim=1))
        text_ND = gather_rows(self.text.encode([str(item["caption"]) for item in items]))
        loss = image_text_contrastive(image_ND, text_ND, self.options.temperature)
        return self.options.image_text_weight * loss

    def _frame(self, image: Tensor) -> Tensor:
        """The box of a picture, without the padding of the batch."""
        height, width = image.shape[-2:]
        return torch.tensor([[0.0, 0.0, width, height]], device=self.device)

    @torch.no_grad()
    def _complete(self, items: list[Item], images: Tensor) -> list[Item]:
        """Add boxes where the RPN is to give them, and the teacher's features of the regions."""
        items = [dict(item) for item in items]
        if self.rpn is not None:
            self._propose(items)
        boxes = [item["boxes"].to(self.device) for item in items]  # type: ignore[attr-defined]
        if self.options.teacher_regions == "crop":
            teacher = self.embed_crops(items)
        else:
            teacher = RegionFeatures.extract(self.teacher, self._for_teacher(images)).pool(boxes)
        counts = [len(found) for found in boxes]
        for item, found, rows in zip(items, boxes, teacher.split(counts), strict=True):
            item.update(boxes=found, teacher_regions=rows)
        return items

    def _propose(self, items: list[Item]) -> None:
        if self.rpn is None:
            return
        generator = iteration_generator(self.options.seed)
        pictures = [item["image"] for item in items]
        for item, found in zip(items, self.rpn(pictures), strict=True):
            boxes = found.proposal_boxes.tensor
            drawn = torch.randperm(len(boxes), generator=generator)[: self.options.max_regions]
            item["boxes"] = boxes[drawn.to(boxes.device)]
            if not len(boxes):
                # A picture without any proposal is a region itself.
                item["boxes"] = self._frame(item["image"])  # type: ignore[arg-type]
            if self.options.teacher_regions == "crop":
                item["crops"] = _cut(
                    item["image"],  # type: ignore[arg-type]
                    item["boxes"],  # type: ignore[arg-type]
                    self.options.crop_enlarge,
                )

    @torch.no_grad()
    def _split(
        self, items: list[Item], dense: Tensor, student_RD: Tensor
    ) -> list[dict[str, Tensor]]:
        rows = super()._split(items, dense, student_RD)
        if self.teacher.embed_dim != self.student.embed_dim:
            for row in rows:
                del row["crop"]
        return rows

    @staticmethod
    def _log(labels: PseudoLabels, num_regions: int) -> None:
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("regionclip/num_regions", float(num_regions))
            storage.put_scalar("regionclip/num_kept", float(len(labels.targets)))
            storage.put_scalar("regionclip/num_concepts", float(len(labels.targets.unique())))


def _cut(image: Tensor, boxes: Tensor, enlarge: float) -> list[Tensor]:
    """Cut enlarged boxes out of a picture; each piece has at least one pixel."""
    height, width = image.shape[-2:]
    center, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * enlarge / 2
    pieces = []
    enlarged = torch.cat([center - half, center + half], dim=1)
    for left, top, right, bottom in enlarged.round().int().tolist():
        left, top = min(max(left, 0), width - 1), min(max(top, 0), height - 1)
        right, bottom = max(right, left + 1), max(bottom, top + 1)
        pieces.append(image[:, top:bottom, left:right])
    return pieces
