"""Data sets in Detectron2's catalogs; importing this package registers them."""

from clipself_d2.data.datasets.emoji import register_emoji
from clipself_d2.data.datasets.validate import check_coco_file, check_images_exist

__all__ = ["check_coco_file", "check_images_exist", "register_emoji"]
