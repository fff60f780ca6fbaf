"""Scores of single classes, their means over splits, and a table of them.

Legend: T IoU thresholds, P recall points, K classes, A area ranges, M detection limits.
"""

import csv
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.coco import COCO

# Place of an IoU of 0.75 among 0.50, 0.55 and so on.
_AT_75 = 5


def class_ap(precision_TPKAM: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Average COCO's precision of every class over recall and IoU, all areas, most detections.

    (K,) average precision in 0 to 1; NaN for classes without ground truth, where the table has -1.
    """
    curves_TPK = precision_TPKAM[:, :, :, 0, -1]
    # A class without ground truth has -1 at every threshold.
    present_K = (curves_TPK > -1).all(axis=(0, 1))
    return np.where(present_K, curves_TPK.mean(axis=(0, 1)), np.nan)


def class_scores(
    precision_TPKAM: npt.NDArray[np.float64], recall_TKAM: npt.NDArray[np.float64]
) -> dict[str, npt.NDArray[np.float64]]:
    """Score every class at all areas and most detections.

    The tables are COCO's, at IoU 0.50 to 0.95 in steps of 0.05, -1 where a class has no ground
    truth. (K,) scores in 0 to 1 for ``AP``, ``AP50``, ``AP75`` and ``AR``; NaN for such classes.
    """
    recall_TK = recall_TKAM[:, :, 0, -1]
    return {
        "AP": class_ap(precision_TPKAM),
        "AP50": class_ap(precision_TPKAM[:1]),
        "AP75": class_ap(precision_TPKAM[_AT_75 : _AT_75 + 1]),
        "AR": np.where((recall_TK > -1).all(axis=0), recall_TK.mean(axis=0), np.nan),
    }


def split_mean(score_K: npt.NDArray[np.float64], member_K: npt.NDArray[np.bool_]) -> float:
    """Average (K,) scores over a split's classes with ground truth; NaN if it has none."""
    scores = score_K[member_K & ~np.isnan(score_K)]
    return float(scores.mean()) if scores.size else float("nan")


def novel_names(metadata: Any, names: Collection[str]) -> frozenset[str]:
    """Read ``novel_classes``, empty where none are told apart; a ValueError names strangers."""
    novel = frozenset(metadata.get("novel_classes") or ())
    strangers = sorted(novel.difference(names))
    if strangers:
        raise ValueError(
            f"novel_classes of {metadata.name} has {', '.join(strangers)}, not among its classes"
        )
    return novel


def segment_classes(metadata: Any, names: Sequence[str] = ()) -> dict[str, Any]:
    """Describe things and then stuff for evaluators; ``names`` take the place of the metadata's.

    ``class_names``, and flags for each: ``is_thing``, and ``novel_mask``, which is None where no
    novel classes are known.
    """
    things = list(metadata.get("thing_classes") or ())
    every = [*things, *(metadata.get("stuff_classes") or ())]
    novel, names = novel_names(metadata, every), names or every
    return {
        "class_names": names,
        "is_thing": [number < len(things) for number in range(len(names))],
        "novel_mask": [name in novel for name in names] if novel else None,
    }


def class_facts(
    coco_api: COCO,
    class_names: Mapping[int, str],
    novel: Collection[str],
    img_ids: Sequence[int] | None = None,
) -> dict[str, Sequence[str | int]]:
    """Gather the columns of the class table that are no scores.

    K entries each in the order of the category ids; crowds do not count as instances. ``novel`` is
    empty where none are told apart, and ``img_ids`` None is all images.
    """
    chosen = coco_api.imgs if img_ids is None else set(img_ids)
    images: dict[int, set[int]] = {category_id: set() for category_id in class_names}
    instances = dict.fromkeys(class_names, 0)
    for entry in coco_api.anns.values():
        if entry["image_id"] in chosen and not entry.get("iscrowd"):
            images[entry["category_id"]].add(entry["image_id"])
            instances[entry["category_id"]] += 1
    ids = sorted(class_names)
    names = [class_names[category_id] for category_id in ids]
    split = {True: "novel", False: "base"} if novel else {False: "all"}
    facts: dict[str, Sequence[str | int]] = {
        "class": names,
        "category_id": ids,
        "split": [split[name in novel] for name in names],
    }
    frequencies = [coco_api.cats[category_id].get("frequency") for category_id in ids]
    if all(frequencies):
        facts["frequency"] = frequencies
    facts["images"] = [len(images[category_id]) for category_id in ids]
    facts["instances"] = [instances[category_id] for category_id in ids]
    return facts


def write_class_table(
    path: Path,
    facts: Mapping[str, Sequence[str | int]],
    scores: Mapping[str, npt.NDArray[np.float64]],
) -> None:
    """Write a csv file with a row for every class.

    ``facts`` come first; (K,) scores in 0 to 1 are written in percent, and NaN leaves its cell
    empty.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [*facts.values()]
    for score_K in scores.values():
        columns.append(["" if np.isnan(score) else f"{100 * score:.4f}" for score in score_K])
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow([*facts, *scores])
        writer.writerows(zip(*columns, strict=True))
