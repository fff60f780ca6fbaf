"""Terms of a distillation: what of the student is compared with which teacher, and how.

A term is a frozen set of options, called with a batch. Which models it needs is said by ``needs``.

Legend: N images, C channels, D joint embedding, h w grid, T = h * w cells, R regions, K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import roi_align

from clipself_d2.distillation.base import iteration_generator
from clipself_d2.distillation.losses import (
    REDUCTIONS,
    affinity,
    affinity_loss,
    cosine_distances,
    grouped_kl,
    map_match,
    spatial_target,
)
from clipself_d2.distillation.regionclip_losses import concept_contrastive
from clipself_d2.distillation.term_batch import Batch
from clipself_d2.layers import roi_embeddings

KEY = "MODEL.DISTILL.TERMS"
# Most labels of one picture that a map is matched for.
_MAX_LABELS = 20


@dataclass(frozen=True, kw_only=True)
class Term(ABC):
    """What every term has.

    Attributes:
        weight: Factor of the loss, at least 0.
        needs: Models beside student and frozen original: "vfm", "averaged", "texts", "other".
    """

    name: ClassVar[str]
    weight: float = 1.0
    # Values that an option may have.
    choices: ClassVar[Mapping[str, Sequence[object]]] = {}

    def __post_init__(self) -> None:
        """Check the options."""
        for option, known in self.choices.items():
            if getattr(self, option) not in known:
                raise ValueError(f"{option} is {getattr(self, option)!r}, not one of {known}")
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{field.name} is {value}; it is at least 0")
        if getattr(self, "temperature", 1.0) == 0:
            raise ValueError("temperature is 0; it is above 0")

    @property
    def needs(self) -> frozenset[str]:
        """Models that the distiller holds for it."""
        return frozenset()

    @abstractmethod
    def __call__(self, batch: Batch) -> Tensor:
        """Compute the loss, without its weight; a scalar that keeps the student's graph."""


@dataclass(frozen=True, kw_only=True)
class CropTerm(Term):
    """Cosine of regions and of their crops' embeddings: CLIPSelf's loss, DeCLIP's content.

    Attributes:
        teacher: "frozen" (the original), "averaged" (the student's moving average) or "live" (the
            student itself, with gradient).
        momentum: Share of the past in the moving average, at each iteration.
        raw: Whether cells are pooled before they are normalised, as DeCLIP does.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2; "live" is FineCLIP's.
    """

    name: ClassVar[str] = "cosine"
    choices = {"teacher": ("frozen", "averaged", "live")}
    teacher: str = "frozen"
    momentum: float = 0.999
    raw: bool = False

    @property
    def needs(self) -> frozenset[str]:
        """The moving average, for a teacher of that name."""
        return frozenset({"averaged"} if self.teacher == "averaged" else ())

    def __call__(self, batch: Batch) -> Tensor:
        """Sum over regions, over their number."""
        model, student_RD = batch.model, batch.student_RD
        if self.raw:
            lengths = batch.scene.dense.lengths
            assert lengths is not None, "towers without tokens give none"
            raw = batch.scene.dense.embedding * lengths
            student_RD = roi_embeddings(raw, batch.scene.boxes, model.student.patch_size)
        if self.teacher == "live":
            teacher_RD = model.student.forward_image(model.preprocess_crops(batch.items, "crops"))
        else:
            tower = model.averaged if self.teacher == "averaged" else None
            teacher_RD = model.embed_crops(batch.items, tower)
        model.log_regions(teacher_RD)
        distance_R = _masked_distances(student_RD, teacher_RD)
        # Without regions the sum keeps the graph, so that every process has gradients to reduce.
        return distance_R.sum() / batch.count


@dataclass(frozen=True, kw_only=True)
class AffinityTerm(Term):
    """Likeness of cells among themselves, against that of another model.

    Attributes:
        of: What of the student: "map" (the dense embedding), "query", "key" or "query_key" (of the
            last block; the mean of both affinities).
        teacher: "vfm" or "clip" (the frozen original's dense map).
        reduction: As of ``losses.affinity_loss``.
        temperature: Likewise.
        rows: Rows drawn of large affinities, at each iteration anew; 0: all.
        region_size: Side in cells of the grid to which every region is pooled, with affinities in
            regions alone; 0: one affinity a picture.

    Reference: DeCLIP, arXiv 2505.04410 (query, query_key); DenseRC (map); R-SC-CLIPSelf,
    arXiv 2504.02328 (in regions, of the frozen CLIP).
    """

    name: ClassVar[str] = "affinity"
    choices = {
        "of": ("map", "query", "key", "query_key"),
        "teacher": ("vfm", "clip"),
        "reduction": REDUCTIONS,
    }
    of: str = "map"
    teacher: str = "vfm"
    reduction: str = "row_l2"
    temperature: float = 0.2
    rows: int = 0
    region_size: int = 0

    @property
    def needs(self) -> frozenset[str]:
        """The vision foundation model, for a teacher of that name."""
        return frozenset({"vfm"} if self.teacher == "vfm" else ())

    def __call__(self, batch: Batch) -> Tensor:
        """Mean over rows: of all pictures, or of all regions."""
        students = batch.student(self.of)
        teacher = batch.vfm if self.teacher == "vfm" else batch.clip
        options = {"reduction": self.reduction, "temperature": self.temperature}
        if self.region_size:
            students = [self._in_regions(part, batch) for part in students]
            teacher = self._in_regions(teacher, batch)
            mean = affinity_loss(_mean_affinity(students), affinity(_cells(teacher)), **options)  # type: ignore[arg-type]
            # The sum over regions, divided by the mean number of all processes.
            return mean * len(teacher) / batch.count
        rows = None
        real_NS = batch.real
        if 0 < self.rows < real_NS.shape[1]:
            generator = iteration_generator(batch.model.seed)
            drawn = torch.randperm(real_NS.shape[1], generator=generator)[: self.rows]
            rows = drawn.to(real_NS.device)
            real_NS = real_NS[:, rows]
        return affinity_loss(
            _mean_affinity(students, rows),
            affinity(_cells(teacher), rows),
            real_NS=real_NS,
            real_NT=batch.real,
            **options,  # type: ignore[arg-type]
        )

    def _in_regions(self, part: Tensor, batch: Batch) -> Tensor:
        stride = batch.model.student.patch_size
        size = self.region_size
        return roi_align(part.float(), batch.scene.boxes, size, 1.0 / stride, -1, aligned=True)


@dataclass(frozen=True, kw_only=True)
class MapTerm(Term):
    """Where in a picture its labels are: the student's map of a name, against one of rich texts.

    Attributes:
        kind: As of ``losses.map_match``.
        top: Strongest cells whose rows of the vision foundation model's affinity are averaged.
        semantic: Share of the teacher's map of the rich text in the target.
        spatial: Share of those rows.

    Reference: SynCLIP, arXiv 2607.11008; the defaults are its script's.
    """

    name: ClassVar[str] = "map"
    choices = {"kind": ("huber_kl", "l2")}
    kind: str = "huber_kl"
    top: int = 7
    semantic: float = 0.7
    spatial: float = 0.3

    @property
    def needs(self) -> frozenset[str]:
        """The vision foundation model and the texts."""
        return frozenset({"vfm", "texts"})

    def __call__(self, batch: Batch) -> Tensor:
        """Mean over the labels of all pictures; cells of padding take no part."""
        model, maps = batch.model, batch.scene.dense.embedding
        if any("image_classes" not in item for item in batch.items):
            raise ValueError(
                f"the term map of {KEY} needs the labels of pictures, and those of DATASETS.TRAIN "
                "have none; name a detection data set there"
            )
        losses = [maps.new_zeros(0) + maps.sum() * 0.0]
        for number, (item, (rows, columns)) in enumerate(
            zip(batch.items, batch.real_sizes, strict=True)
        ):
            labels: Tensor = item["image_classes"][:_MAX_LABELS]  # type: ignore[index]
            if not len(labels):
                continue
            labels = model.moved(labels)
            student, teacher, vfm = (
                part[number, :, :rows, :columns].flatten(1)
                for part in (maps, batch.clip, batch.vfm)
            )
            target = spatial_target(
                model.rich_KD[labels] @ teacher,
                affinity(vfm.T[None])[0],
                top=self.top,
                shares=(self.semantic, self.spatial),
            )
            losses.append(map_match(model.short_KD[labels] @ student, target, kind=self.kind))
        # Without labels the loss is 0 and keeps the student's graph.
        found = torch.cat(losses)
        return found.sum() / max(1, len(found)) + maps.sum() * 0.0


@dataclass(frozen=True, kw_only=True)
class VocabularyTerm(Term):
    """Classes of regions, by the dense map of another, larger CLIP that distils its student.

    The classes are those of MODEL.VOCABULARY.DATASET, things first.

    Attributes:
        clip: Name of the other CLIP; empty: that of MODEL.CLIP.
        pretrained: Its pretrained tag or file.
        weights: File of a distilled tower that replaces its own; empty: none.
        threshold: Probability that a region's best class exceeds to take part.
        temperature: Divisor of the cosine.

    Reference: DenseVLM, arXiv 2412.06244.
    """

    name: ClassVar[str] = "vocabulary"
    clip: str = ""
    pretrained: str = ""
    weights: str = ""
    threshold: float = 0.3
    temperature: float = 0.01

    @property
    def needs(self) -> frozenset[str]:
        """The other CLIP and the texts of both."""
        return frozenset({"other", "texts"})

    def __call__(self, batch: Batch) -> Tensor:
        """Means of things and of stuff, added."""
        model, scene = batch.model, batch.scene
        other = model.other
        assert other is not None, "needs names it"
        with torch.no_grad():
            dense = other.forward_dense(scene.images).embedding
            teacher_RD = roi_embeddings(dense, scene.boxes, other.patch_size)
        return grouped_kl(
            batch.student_RD @ model.short_KD.T / self.temperature,
            teacher_RD @ model.other_KD.T / self.temperature,
            num_things=model.num_things,
            threshold=self.threshold,
        ).sum()


@dataclass(frozen=True, kw_only=True)
class LabelTerm(Term):
    """InfoNCE of annotated regions and the names of the batch.

    Attributes:
        temperature: Divisor of the cosine.
    """

    name: ClassVar[str] = "label"
    temperature: float = 0.01

    @property
    def needs(self) -> frozenset[str]:
        """The texts."""
        return frozenset({"texts"})

    def __call__(self, batch: Batch) -> Tensor:
        """Sum over regions, over their number."""
        if any("region_classes" not in item for item in batch.items):
            raise ValueError(f"the term label of {KEY} needs INPUT.REGIONS.SOURCE labels")
        labels = torch.cat([item["region_classes"] for item in batch.items])  # type: ignore[misc]
        labels = batch.model.moved(labels)
        names_KD = batch.model.short_KD
        rows = concept_contrastive(batch.student_RD, names_KD, labels, self.temperature)
        return rows.sum() / batch.count


TERMS: dict[str, type[Term]] = {
    "crop": CropTerm,
    "affinity": AffinityTerm,
    "map": MapTerm,
    "vocabulary": VocabularyTerm,
    "label": LabelTerm,
}


def read_terms(rows: Sequence[Mapping[str, object]]) -> tuple[Term, ...]:
    """Turn the rows of MODEL.DISTILL.TERMS into terms.

    Args:
        rows: Each with ``loss``, a name of ``TERMS``, and options of that term.

    Returns:
        The terms in order.

    Raises:
        ValueError: If a name, an option or a value is unknown, or there is no term.
    """
    terms = []
    for row in rows:
        options = dict(row) if isinstance(row, Mapping) else {"loss": row}
        kind = options.pop("loss", None)
        if kind not in TERMS:
            raise ValueError(f"{KEY} has a row of loss {kind!r}; it is one of {tuple(TERMS)}")
        try:
            terms.append(TERMS[str(kind)](**options))  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            names = [field.name for field in fields(TERMS[str(kind)])]
            raise ValueError(f"{KEY}, row {kind}: {error}; it takes {names}") from error
    if not any(term.weight for term in terms):
        raise ValueError(f"{KEY} has no term with a weight above 0; name one")
    return tuple(terms)


def _masked_distances(student_RD: Tensor, teacher_RD: Tensor) -> Tensor:
    """Distances of the teacher's regions; those that fill up the student's batch count nothing."""
    added = len(student_RD) - len(teacher_RD)
    if added <= 0:
        return cosine_distances(student_RD, teacher_RD)
    distance_R = cosine_distances(student_RD, pad(teacher_RD, (0, 0, 0, added)))
    real_R = torch.arange(len(student_RD), device=student_RD.device) < len(teacher_RD)
    return distance_R * real_R


def _cells(part: Tensor) -> Tensor:
    return part.flatten(2).transpose(1, 2)


def _mean_affinity(parts: Sequence[Tensor], rows: Tensor | None = None) -> Tensor:
    return torch.stack([affinity(_cells(part), rows) for part in parts]).mean(0)
