"""What a detector's images go through."""

import io
import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data.detection_utils import build_augmentation
from detectron2.data.transforms import (
    Augmentation,
    RandomCrop_CategoryAreaConstraint,
    RandomFlip,
    ResizeScale,
    ResizeShortestEdge,
)
from detectron2.projects.point_rend import ColorAugSSDTransform
from detectron2.utils.file_io import PathManager
from fvcore.transforms.transform import CropTransform, Transform
from iopath.common.file_io import PathHandler

from clipself_d2.data.items import Item, Record
from clipself_d2.data.panoptic_mapper import PanopticMapper
from clipself_d2.data.pictures import read_picture
from clipself_d2.data.tar_shards import is_member

logger = logging.getLogger(__name__)

# Number of pixels without a class in label maps.
_IGNORE_LABEL = 255
FLIPS = ("horizontal", "vertical", "none")
# Before the name of a file that Detectron2 is to read by ``read_picture``.
_PREFIX = "clipself-picture://"


class _PictureHandler(PathHandler):
    """Opens a picture as ``read_picture`` decodes it, as a stream that costs Pillow a copy."""

    def _get_supported_prefixes(self) -> list[str]:
        return [_PREFIX]

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> io.BytesIO:
        place = path.removeprefix(_PREFIX)
        stream = io.BytesIO()
        # Data sets may name files by prefixes of their own.
        local = place if is_member(place) else PathManager.get_local_path(place)
        # Raw pixels behind a header of a few bytes.
        read_picture(local).save(stream, "PPM")
        stream.seek(0)
        return stream


PathManager.register_handler(_PictureHandler())


class PictureMapper(DatasetMapper):
    """Detectron2's mapper with the reader of pictures that everything else here has.

    Arguments are those of ``DatasetMapper``, which takes no reader but asks ``PathManager`` for
    its files.
    """

    def __call__(self, dataset_dict: Record) -> Item:
        """Read and prepare a picture; whatever is wrong with it names its file."""
        name = str(dataset_dict["file_name"])
        try:
            item: Item = super().__call__({**dataset_dict, "file_name": _PREFIX + name})
        except FileNotFoundError:
            raise
        except (OSError, SyntaxError, ValueError) as error:
            # Whoever reads it knows the file by the data set's name.
            reason = str(error).replace(_PREFIX, "")
            if name not in reason:
                width, height = (dataset_dict.get(side, "?") for side in ("width", "height"))
                labels = dataset_dict.get("sem_seg_file_name")
                pair = f" with its labels {labels}" if labels else ""
                reason = (
                    f"image {name}{pair} of {width} x {height} px cannot be prepared ({reason}); "
                    "check the file and its annotations"
                )
            raise ValueError(reason) from error
        item["file_name"] = dataset_dict["file_name"]
        return item


class ShiftPolygonsCrop(CropTransform):
    """A crop that moves polygons without cutting them at its border.

    Mask heads sample a polygon inside of boxes, which end at the border, so the targets are those
    of cut polygons; cutting takes the package shapely.
    """

    def apply_polygons(self, polygons: list[np.ndarray]) -> list[np.ndarray]:
        """Move polygons, (P, 2) px each; they may lie outside of the crop."""
        # Not super(), whose crop cuts.
        return Transform.apply_polygons(self, polygons)


class RandomSquareCrop(Augmentation):
    """Cut what exceeds a square of ``size`` px, at a random place; smaller sides are kept."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def get_transform(self, image: np.ndarray) -> Transform:
        """Draw rows and columns of the place apart, with Detectron2's seed of numpy."""
        height, width = image.shape[:2]
        top, left = (np.random.randint(max(side - self.size, 0) + 1) for side in (height, width))
        # A side that is shorter than the square is kept whole.
        size = (min(self.size, width), min(self.size, height))
        return ShiftPolygonsCrop(left, top, *size, width, height)


def lsj_augmentations(
    size: int, scale_range: Sequence[float] = (0.1, 2.0), flip: str = "horizontal"
) -> list[Augmentation]:
    """Make large-scale jitter: resize at random, crop to a square, flip.

    The longest side of an image becomes ``size`` px times a number drawn from ``scale_range``; what
    exceeds ``size`` is cut off at a random place. Smaller images are not padded here: the model
    pads after normalisation, with zeros, to the square of MODEL.CLIP_FPN.SQUARE_SIZE. A crop
    without a box stays in training.

    Reference: Simple Copy-Paste, arXiv 2012.07177, section 3, with the range of F-ViT, CLIPSelf,
    arXiv 2310.01403. Differs from Detectron2's: that pads with grey before normalisation and draws
    one number for the place in both directions.
    """
    if len(scale_range) != 2 or not 0 < scale_range[0] <= scale_range[1]:
        raise ValueError(
            f"scale_range is {list(scale_range)}; it is two ratios > 0, the smaller first"
        )
    low, high = scale_range
    return [ResizeScale(low, high, size, size), RandomSquareCrop(size), *_flips(flip)]


def _flips(flip: str) -> list[Augmentation]:
    if flip == "none":
        return []
    return [RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")]


def semantic_augmentations(
    sizes: Sequence[int],
    *,
    max_size: int = 1333,
    sampling: str = "choice",
    crop_type: str = "absolute",
    crop_size: Sequence[float] = (),
    max_area: float = 1.0,
    flip: str = "horizontal",
    image_format: str = "RGB",
) -> list[Augmentation | Transform]:
    """Make the augmentations of semantic segmentation: resize, crop, jitter colours, flip.

    Args:
        sizes: Shortest sides, px, one of which is drawn.
        max_size: Most of the longest side, px.
        sampling: "choice" or "range" of the sizes.
        crop_type: Detectron2's type of the crop.
        crop_size: Its height and width; () crops nothing.
        max_area: Largest share of one class in a crop; 1 takes any.
        flip: "horizontal", "vertical" or "none"; flipped with probability 0.5.
        image_format: Order of the channels.

    Returns:
        Augmentations in order; Detectron2's own, which its mapper has in another order.

    Reference: the mapper of MaskFormer, arXiv 2107.06278, which CAT-Seg uses.
    """
    made = [ResizeShortestEdge(tuple(sizes), max_size, sampling)]
    if crop_size:
        made.append(
            RandomCrop_CategoryAreaConstraint(crop_type, list(crop_size), max_area, _IGNORE_LABEL)
        )
    # A transform, but one that draws anew for each picture.
    return [*made, ColorAugSSDTransform(img_format=image_format), *_flips(flip)]


def build_train_mapper(cfg: CfgNode) -> PictureMapper | PanopticMapper:
    """Build the mapper of training images, with the augmentations that INPUT asks for.

    INPUT.LSJ_SIZE is large-scale jitter, SEMANTIC_MAX_AREA the crop and colours of semantic
    segmentation; sets of the type ``ov_panoptic`` have the mapper of masks.
    """
    options, size = cfg.INPUT, cfg.INPUT.LSJ_SIZE
    jitter = lsj_augmentations(size, flip=options.RANDOM_FLIP) if size else []
    kinds = {MetadataCatalog.get(name).get("evaluator_type") for name in cfg.DATASETS.TRAIN}
    if "ov_panoptic" in kinds:
        return PanopticMapper(augmentations=jitter or build_augmentation(cfg, is_train=True))
    if size:
        if options.CROP.ENABLED:
            logger.warning("INPUT.CROP is ignored: INPUT.LSJ_SIZE %d crops by itself", size)
        # With INPUT.CROP Detectron2 takes boxes of the masks, which here reach beyond the crop.
        return PictureMapper(cfg, is_train=True, augmentations=jitter, recompute_boxes=False)
    if not options.SEMANTIC_MAX_AREA:
        return PictureMapper(cfg, is_train=True)
    augmentations = semantic_augmentations(
        options.MIN_SIZE_TRAIN,
        max_size=options.MAX_SIZE_TRAIN,
        sampling=options.MIN_SIZE_TRAIN_SAMPLING,
        crop_type=options.CROP.TYPE,
        crop_size=options.CROP.SIZE if options.CROP.ENABLED else (),
        max_area=options.SEMANTIC_MAX_AREA,
        flip=options.RANDOM_FLIP,
        image_format=options.FORMAT,
    )
    return PictureMapper(cfg, is_train=True, augmentations=augmentations)
