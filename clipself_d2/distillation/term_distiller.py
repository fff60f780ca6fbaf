"""A distiller whose losses are a list of terms: DeCLIP, SynCLIP, DenseRC, SC-CLIPSelf, DenseVLM.

Legend: R regions of the batch, K classes, D joint embedding.
"""

import copy
from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import MetadataCatalog
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from clipself_d2.clip import VisionTower, load_clip, load_tower
from clipself_d2.distillation.base import Item, Losses, RegionDistiller, Scene, Towers
from clipself_d2.distillation.build import towers_from_config
from clipself_d2.distillation.losses import constant_prediction_loss
from clipself_d2.distillation.term_batch import Batch
from clipself_d2.distillation.terms import (
    KEY,
    AffinityTerm,
    CropTerm,
    Term,
    VocabularyTerm,
    read_terms,
)
from clipself_d2.parts.image_tower import build_vfm, load_whole_clip
from clipself_d2.parts.text_embeddings import training_vocabulary
from clipself_d2.vocabulary import Vocabulary

# Iterations between two lines of metrics.json, Detectron2's default.
_WRITER_PERIOD = 20


class TermDistiller(RegionDistiller):
    """Student and frozen teachers; the losses are those of the terms, times their weights.

    Args:
        towers: Student and its original, as of ``RegionDistiller``.
        terms: The terms.
        vfm: Vision foundation model, from (N, 3, H, W) pixels of 0 to 255 and a grid to
            (N, C, h, w); None where no term needs it.
        other: Another CLIP's tower that teaches by its dense map.
        short_KD: The student's unit-norm embeddings of the class names.
        rich_KD: Those of rich texts, a name and its synonyms.
        other_KD: The other CLIP's (K, D') embeddings of the names.
        num_things: Number of things among the classes, which come first.
        seed: Seed of what terms draw.

    Raises:
        ValueError: If a term needs something that is not there, or the form of the student has no
            query or key.
    """

    short_KD: Tensor
    rich_KD: Tensor
    other_KD: Tensor

    @configurable
    def __init__(
        self,
        *,
        towers: Towers,
        terms: Sequence[Term],
        vfm: nn.Module | None = None,
        other: VisionTower | None = None,
        short_KD: Tensor | None = None,
        rich_KD: Tensor | None = None,
        other_KD: Tensor | None = None,
        num_things: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(towers=towers)
        self.terms, self.num_things, self.seed = tuple(terms), num_things, seed
        self.vfm, self.other = vfm, other
        # Other terms do not mask the regions that fill up a batch.
        if all(isinstance(term, CropTerm) for term in self.terms):
            self.region_slots = towers.region_slots
        for name, table in (("short_KD", short_KD), ("rich_KD", rich_KD), ("other_KD", other_KD)):
            unit = (
                torch.zeros(0) if table is None else nn.functional.normalize(table.float(), dim=1)
            )
            self.register_buffer(name, unit, persistent=False)
        for model in (vfm, other):
            if model is not None:
                model.eval().requires_grad_(False)
        self._check_form()
        needed = frozenset[str]().union(*(term.needs for term in self.terms))
        self.averaged: VisionTower | None = None
        if "averaged" in needed:
            self.averaged = copy.deepcopy(self.student).eval()
            self.averaged.freeze()
        self._averaged_at = -1
        has = {"vfm": vfm is not None, "other": other is not None, "averaged": True}
        missing = sorted(need for need in needed if not has.get(need, short_KD is not None))
        if missing:
            raise ValueError(f"{KEY} needs {' and '.join(missing)}, which are not given")

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.DISTILL, MODEL.VFM, MODEL.VOCABULARY and the pixel statistics."""
        terms = read_terms(cfg.MODEL.DISTILL.TERMS)
        needed = frozenset[str]().union(*(term.needs for term in terms))
        parts: dict[str, object] = {"terms": terms, "seed": max(cfg.SEED, 0)}
        original = None
        if "texts" in needed:
            clip = load_whole_clip(cfg)
            original, vocabulary = clip.tower, training_vocabulary(cfg)
            parts["short_KD"] = clip.text.encode(list(vocabulary.names))
            parts["rich_KD"] = clip.text.encode(_rich_texts(cfg, vocabulary))
            # Things come first; all classes are things where nothing is said of stuff.
            things = vocabulary.thing_mask
            parts["num_things"] = sum(things) if things else vocabulary.num_classes
            for term in terms:
                if isinstance(term, VocabularyTerm):
                    name = term.clip or cfg.MODEL.CLIP.NAME
                    larger = load_clip(name, term.pretrained or None)
                    tower = load_tower(name, term.weights) if term.weights else larger.tower
                    parts["other"] = tower
                    parts["other_KD"] = larger.text.encode(list(vocabulary.names))
        if "vfm" in needed:
            parts["vfm"] = build_vfm(cfg)
        return {"towers": towers_from_config(cfg, original=original), **parts}

    def compute_losses(
        self, items: list[Item], student_RD: Tensor, scene: Scene | None = None
    ) -> Losses:
        """Compute every term of a weight.

        Args:
            items: The batch.
            student_RD: (R, D) unit-norm region features.
            scene: The rest of what the student saw and made.

        Returns:
            ``loss_<name>`` of each term; of two of one kind the second is ``loss_<name>_2``.
        """
        assert scene is not None, "RegionDistiller.forward gives it"
        self._average()
        batch = Batch(self, items, student_RD, scene)
        losses: Losses = {}
        for term in self.terms:
            if term.weight == 0:
                continue
            name, number = f"loss_{term.name}", 1
            while name in losses:
                number += 1
                name = f"loss_{term.name}_{number}"
            loss = term(batch)
            losses[name] = loss if term.weight == 1 else term.weight * loss
        return losses

    @torch.no_grad()
    def _average(self) -> None:
        """Let the moving average follow the student, once an iteration."""
        iteration = int(get_event_storage().iter) if has_event_storage() else self._averaged_at + 1
        if self.averaged is None or iteration == self._averaged_at:
            return
        self._averaged_at = iteration
        momentum = next(t.momentum for t in self.terms if isinstance(t, CropTerm) and t.needs)
        past: list[Tensor] = list(self.averaged.parameters())
        now: list[Tensor] = list(self.student.parameters())
        # past += (1 - momentum) * (now - past), for all tensors in a few kernels.
        torch._foreach_lerp_(past, now, 1 - momentum)

    def log_regions(self, teacher_RD: Tensor) -> None:
        """Log the number of regions, and the loss of a constant prediction where it is written."""
        if not has_event_storage():
            return
        storage = get_event_storage()
        storage.put_scalar("distill/num_regions", float(len(teacher_RD)))
        # A number out of a tensor waits for the device, which would stand idle until the student's
        # pass is queued: once in the 20 iterations after which Detectron2 writes its scalars.
        if (storage.iter + 1) % _WRITER_PERIOD == 0:
            storage.put_scalar("distill/constant_loss", constant_prediction_loss(teacher_RD))

    def _check_form(self) -> None:
        form = getattr(self.student, "dense_form", None)
        for term in self.terms:
            parts = set(term.of.split("_")) if isinstance(term, AffinityTerm) else {"map"}
            if parts != {"map"} and (form is None or form.as_trained or not parts <= form.reads):
                raise ValueError(
                    f"{KEY} reads the {' and '.join(sorted(parts))} of the last block, which the "
                    f"dense form {form} does not compute; set MODEL.CLIP.DENSE_FORM to declip_csa, "
                    "or declip_qq for the query alone"
                )


def _rich_texts(cfg: CfgNode, vocabulary: Vocabulary) -> list[str]:
    """Every name with the synonyms that the metadata of its data set has."""
    metadata = MetadataCatalog.get(cfg.MODEL.VOCABULARY.DATASET or cfg.DATASETS.TRAIN[0])
    synonyms = [list(group) for group in metadata.get("class_synonyms", None) or ()]
    synonyms += [[]] * (vocabulary.num_classes - len(synonyms))
    return [", ".join([n, *s]) for n, s in zip(vocabulary.names, synonyms, strict=True)]
