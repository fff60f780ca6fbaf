"""Label maps of all classes of the emoji scenes, things first, for open-vocabulary segmentation.

``emoji_ov_sem_seg_train`` and ``emoji_ov_sem_seg_val``. The maps are made of the panoptic files
when a data set is first read, into ``emoji/ov_semantic_<split>``; in training, novel things do not
count.
The training split's panoptic files are written by ``datasets/prepare_emoji.py --panoptic-train``.
"""

import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clipself_d2.data.items import Record
from clipself_d2.parts.annotation_files import read_annotation_file
from clipself_d2.parts.label_maps import read_segment_colours, segment_ids

IGNORE_LABEL = 255


def register_emoji_labels(
    root: str | Path, prefix: str, metadata: dict[str, Any], remedy: str
) -> list[str]:
    """Register the data sets below ``root``; files are read when a data set is used."""
    names = []
    for split in ("train", "val"):
        name, folder = f"{prefix}_ov_sem_seg_{split}", Path(root) / "emoji"
        advice = f"{remedy} --panoptic-train" if split == "train" else remedy
        DatasetCatalog.register(name, partial(_load, folder, split, metadata, advice))
        MetadataCatalog.get(name).set(
            image_root=str(folder / split),
            evaluator_type="ov_sem_seg",
            ignore_label=IGNORE_LABEL,
            **metadata,
        )
        names.append(name)
    return names


def _load(folder: Path, split: str, metadata: dict[str, Any], remedy: str) -> list[Record]:
    file, maps = folder / "annotations" / f"panoptic_{split}.json", folder / f"ov_semantic_{split}"
    rows = read_annotation_file(file, ["annotations"], remedy=remedy)["annotations"]
    things = metadata["thing_dataset_id_to_contiguous_id"]
    number = {**things, **metadata["stuff_dataset_id_to_contiguous_id"]}
    if split == "train":
        novel = {metadata["thing_classes"].index(name) for name in metadata["novel_classes"]}
        number |= {category: IGNORE_LABEL for category, n in things.items() if n in novel}
    maps.mkdir(parents=True, exist_ok=True)
    records: list[Record] = []
    for row in rows:
        stem = Path(row["file_name"]).stem
        target = maps / f"{stem}.png"
        if not target.is_file():
            path = folder / f"panoptic_{split}" / row["file_name"]
            ids = segment_ids(read_segment_colours(str(path)))
            labels = np.full(ids.shape, IGNORE_LABEL, np.uint8)
            for segment in row["segments_info"]:
                labels[ids == segment["id"]] = number[segment["category_id"]]
            # Several processes may draw the same map.
            partial_file = target.with_name(f"{stem}.{os.getpid()}.partial")
            Image.fromarray(labels).save(partial_file, format="PNG")
            os.replace(partial_file, target)
        records.append(
            {
                "file_name": str(folder / split / f"{stem}.jpg"),
                "sem_seg_file_name": str(target),
                "image_id": row["image_id"],
            }
        )
    return records
