"""Data sets in Detectron2's catalogs; importing this package registers them."""

import os

from clipself_d2.data.datasets.captions import register_captions
from clipself_d2.data.datasets.coco_ov import register_coco_ov
from clipself_d2.data.datasets.coco_panoptic import register_coco_panoptic
from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.data.datasets.emoji import register_emoji
from clipself_d2.data.datasets.emoji_semantic import register_emoji_semantic
from clipself_d2.data.datasets.lvis_ov import register_lvis_ov
from clipself_d2.data.datasets.refcoco import register_emoji_refer, register_refcoco
from clipself_d2.data.datasets.semantic import register_semantic_sets
from clipself_d2.data.datasets.transfer import register_transfer

for _register in (
    register_emoji,
    register_coco_ov,
    register_lvis_ov,
    register_transfer,
    register_coco_panoptic,
    register_refcoco,
    register_emoji_refer,
    register_emoji_semantic,
    register_captions,
    register_semantic_sets,
):
    _register(os.path.expanduser(os.getenv("DETECTRON2_DATASETS", "datasets")))
