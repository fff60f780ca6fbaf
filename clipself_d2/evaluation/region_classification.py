"""Zero-shot classification of regions: macro accuracy of every kind of region embedding.

Legend: R regions of an image, K classes, D joint embedding.
"""

import logging
import math
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from tabulate import tabulate
from torch import Tensor

logger = logging.getLogger(__name__)

KINDS = ("roi", "crop", "mask")
TOPS = (1, 5)
NEVER = torch.iinfo(torch.int64).max


def true_class_rank(region_RD: Tensor, text_KD: Tensor, label_R: Tensor) -> Tensor:
    """Count the wrong classes that score at least as high as the right one.

    A tie is held against the embedding: one that says nothing must not score by the order of the
    classes.

    Args:
        region_RD: Region embeddings, any norm; R may be 0.
        text_KD: Class embeddings, unit norm.
        label_R: Right class of every region.

    Returns:
        (R,) int64, 0 where the right class is first; ``NEVER`` where the embedding is zero or not
        finite, which is a miss at any depth.
    """
    region_RD = region_RD.to(torch.float64)
    # Of zeros all classes score alike, so that at five classes or fewer it would be a hit.
    usable_R = torch.isfinite(region_RD).all(dim=1) & (region_RD != 0).any(dim=1)
    score_RK = region_RD @ text_KD.to(torch.float64).T
    own_R1 = score_RK.gather(1, label_R[:, None])
    # Less the right class, which is as high as itself.
    rank_R = (score_RK >= own_R1).sum(dim=1) - 1
    return torch.where(usable_R, rank_R, NEVER)


def macro_accuracy(hit_K: Tensor, region_K: Tensor, legacy: bool = False) -> float:
    """Average the hit rate, in percent, over the classes that have regions; NaN if none has.

    ``legacy`` rounds every class's rate to half precision, as the reference does.

    Reference: Wu et al., CLIPSelf, arXiv 2310.01403 (mean accuracy).
    """
    present_K = region_K > 0
    if not bool(present_K.any()):
        return math.nan
    # Of numbers in float64: int64 would be divided in float32.
    rates = hit_K[present_K].to(torch.float64) / region_K[present_K].to(torch.float64)
    if legacy:
        rates = rates.to(torch.float16).to(torch.float64)
    return 100.0 * float(rates.mean())


class RegionClassificationEvaluator(DatasetEvaluator):
    """Score region embeddings against class embeddings, things and stuff apart.

    All classes compete for every region. The result ``region`` has, in percent,
    ``<kind>.<split>.macc1`` and ``<kind>.<split>.macc5`` for the kinds of embedding that the model
    gives (``roi``, ``crop``, ``mask``) and the splits ``thing``, ``stuff`` and, where novel
    classes are known, ``thing.novel`` and ``thing.base``. NaN means a split without regions.

    Only counts are kept, so neither batches nor processes change a number.

    Reference: Wu et al., CLIPSelf, arXiv 2310.01403. Differs: rates are not rounded
    unless ``legacy``, and an embedding of zeros is a miss, where the reference lets the order of
    the classes decide.
    """

    def __init__(
        self,
        *,
        text_embeddings_KD: Tensor,
        class_names: Sequence[str],
        is_thing: Sequence[bool],
        novel_mask: Sequence[bool] | None = None,
        legacy: bool = False,
        distributed: bool = True,
    ) -> None:
        """Check that the classes' tables agree.

        Args:
            text_embeddings_KD: Class embeddings, unit L2 norm.
            class_names: K names.
            is_thing: K flags, whether the class is countable.
            novel_mask: K flags, whether the class is novel; None knows no novel classes.
            legacy: Round every class's rate to half precision, as the reference does.
            distributed: Whether to sum the counts of all processes.

        Raises:
            ValueError: If sizes differ or the embeddings are not of unit norm.
        """
        if text_embeddings_KD.dim() != 2 or len(text_embeddings_KD) == 0:
            raise ValueError(
                f"text embeddings have shape {tuple(text_embeddings_KD.shape)}, expected (K, D)"
            )
        num_classes = len(text_embeddings_KD)
        tables = {"class_names": class_names, "is_thing": is_thing, "novel_mask": novel_mask}
        for name, table in tables.items():
            if table is not None and len(table) != num_classes:
                raise ValueError(
                    f"{name} has {len(table)} entries, but there are {num_classes} text embeddings"
                )
        text_KD = text_embeddings_KD.detach().to("cpu", torch.float64)
        norm_K = text_KD.norm(dim=1)
        if not torch.allclose(norm_K, torch.ones_like(norm_K), atol=1e-2):
            raise ValueError(
                f"text embeddings have norms from {norm_K.min():.4f} to {norm_K.max():.4f}, "
                "expected 1; divide each by its norm"
            )
        self._text_KD = text_KD
        self._class_names = tuple(class_names)
        self._is_thing_K = torch.tensor(is_thing, dtype=torch.bool)
        self._novel_K = None if novel_mask is None else torch.tensor(novel_mask, dtype=torch.bool)
        self._legacy = legacy
        self._distributed = distributed
        self.reset()

    def reset(self) -> None:
        """Forget all regions."""
        # By kind, of every class: regions, then hits at each depth of TOPS, then unusable ones.
        self._counts: dict[str, Tensor] = {}
        self._num_regions = 0

    def protocol(self) -> dict[str, object]:
        """Say by which rules the scores are made, in what JSON can hold."""
        return {
            "name": "region classification",
            "classes": len(self._class_names),
            "novel_classes": 0 if self._novel_K is None else int(self._novel_K.sum()),
            "rounding": "half precision per class" if self._legacy else "none",
        }

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Count the hits of a batch.

        Inputs have ``region_classes`` (R,) class indices and ``region_is_thing`` (R,) bools,
        outputs any of ``roi``, ``crop`` and ``mask``, each (R, D). A ValueError says that a key is
        missing, or sizes or class tables differ.
        """
        for number, (item, output) in enumerate(zip(inputs, outputs, strict=True)):
            where = f"image {item.get('image_id', number)}"
            label_R = self._read_labels(item, where)
            kinds = [kind for kind in KINDS if kind in output]
            if not kinds and len(label_R):
                raise ValueError(
                    f"{where}: the model's output has {', '.join(output) or 'no key'}, expected "
                    f"any of {', '.join(KINDS)}"
                )
            self._num_regions += len(label_R)
            for kind in kinds:
                region_RD = output[kind].detach().cpu()
                if region_RD.shape != (len(label_R), self._text_KD.shape[1]):
                    raise ValueError(
                        f"{where}: {kind} has shape {tuple(region_RD.shape)}, expected "
                        f"({len(label_R)}, {self._text_KD.shape[1]}) by region_classes and text"
                    )
                self._count(kind, region_RD, label_R)

    def _read_labels(self, item: Mapping[str, Any], where: str) -> Tensor:
        """Return the (R,) class indices of an image after checking them."""
        label_R: Tensor = item["region_classes"].to("cpu", torch.int64)
        num_classes = len(self._class_names)
        if bool(((label_R < 0) | (label_R >= num_classes)).any()):
            raise ValueError(
                f"{where}: region_classes run from {int(label_R.min())} to {int(label_R.max())}, "
                f"expected 0 to {num_classes - 1}; they index class_names"
            )
        wrong = label_R[self._is_thing_K[label_R] != item["region_is_thing"].to("cpu", torch.bool)]
        if len(wrong):
            raise ValueError(
                f"{where}: region_is_thing contradicts is_thing for class "
                f"{self._class_names[int(wrong[0])]!r}"
            )
        return label_R

    def _count(self, kind: str, region_RD: Tensor, label_R: Tensor) -> None:
        rank_R = true_class_rank(region_RD, self._text_KD, label_R)
        num_classes = len(self._class_names)
        rows = [torch.ones_like(rank_R, dtype=torch.bool)]
        rows += [rank_R < top for top in TOPS]
        rows += [rank_R == NEVER]
        counts = torch.stack([torch.bincount(label_R[r], minlength=num_classes) for r in rows])
        self._counts[kind] = self._counts.get(kind, torch.zeros_like(counts)) + counts

    def evaluate(self) -> "OrderedDict[str, dict[str, float]]":
        """Average over classes: ``{"region": {metric: percent}}``.

        Empty in all processes but the first, and if no region was seen. A ValueError says that a
        kind of embedding was given for some images only.
        """
        states = [(self._num_regions, self._counts)]
        if self._distributed:
            comm.synchronize()
            states = comm.gather(states[0], dst=0)
            if not comm.is_main_process():
                return OrderedDict()
        num_regions = sum(state[0] for state in states)
        if num_regions == 0:
            logger.warning("No region was classified; there is nothing to evaluate")
            return OrderedDict()
        scores: dict[str, float] = {}
        rows: list[list[str | int | float]] = []
        for kind in KINDS:
            parts = [counts[kind] for _, counts in states if kind in counts]
            if not parts:
                continue
            counts = torch.stack(parts).sum(dim=0)
            if int(counts[0].sum()) != num_regions:
                raise ValueError(
                    f"the model gave {kind} embeddings for {int(counts[0].sum())} of "
                    f"{num_regions} regions, expected all or none"
                )
            self._score_kind(kind, counts, scores, rows)
        headers = ["embedding", "split", "classes", "regions", *(f"mAcc{top}" for top in TOPS)]
        table = tabulate(rows, headers, tablefmt="pipe", floatfmt=".3f")
        logger.info("Zero-shot region classification:\n%s", table)
        return OrderedDict(region=scores)

    def _score_kind(
        self,
        kind: str,
        counts: Tensor,
        scores: dict[str, float],
        rows: list[list[str | int | float]],
    ) -> None:
        """Add the scores of one kind of embedding to ``scores``, and to the table's ``rows``."""
        for split, member_K in self._splits():
            region_K = counts[0] * member_K
            # Hits of other classes do no harm: only those with regions in the split count.
            accuracies = [
                macro_accuracy(hit_K, region_K, self._legacy) for hit_K in counts[1 : 1 + len(TOPS)]
            ]
            for top, accuracy in zip(TOPS, accuracies, strict=True):
                scores[f"{kind}.{split}.macc{top}"] = accuracy
            num_regions = int(region_K.sum())
            shown = accuracies if num_regions else ["no region"] * len(TOPS)
            rows.append([kind, split, int((region_K > 0).sum()), num_regions, *shown])
        unusable = int(counts[-1].sum())
        if unusable:
            part = f"{unusable} of {int(counts[0].sum())} {kind} embeddings"
            logger.warning("%s are zero or not finite and count as misses", part)

    def _splits(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the splits' names and (K,) members."""
        yield "thing", self._is_thing_K
        yield "stuff", ~self._is_thing_K
        if self._novel_K is not None:
            yield "thing.novel", self._is_thing_K & self._novel_K
            yield "thing.base", self._is_thing_K & ~self._novel_K
