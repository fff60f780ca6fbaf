"""The one reader of pictures, and what distillation scales and cuts of them."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from clipself_d2.data.tar_shards import is_member, read_member


def read_picture(path: str | Path) -> Image.Image:
    """Read a picture as RGB, upright.

    Args:
        path: File, or address of a picture in a tar shard.

    Returns:
        The decoded picture, as of ``upright_rgb``.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If it is damaged, no picture, too large for Pillow's ``MAX_IMAGE_PIXELS``, or
            has pixels of unknown range.
    """
    source = io.BytesIO(read_member(str(path))) if is_member(path) else path
    if source is path and not Path(path).is_file():
        raise FileNotFoundError(
            f"image {path} does not exist; check the path, or of a data set DETECTRON2_DATASETS "
            "and the annotation file"
        )
    with naming_picture(path), Image.open(source) as image:
        return upright_rgb(image)


def check_picture(path: str | Path) -> None:
    """Look at the beginning of a file; errors are those of ``naming_picture``."""
    with naming_picture(path), Image.open(path):
        pass


@contextmanager
def naming_picture(path: str | Path) -> Iterator[None]:
    """Name the file, whatever Pillow raises in a with block: FileNotFoundError or ValueError."""
    try:
        yield
    except FileNotFoundError:
        raise
    except Exception as error:
        # A damaged file leads decoders to errors of any type, and not all of them have words.
        reason = str(error) or type(error).__name__
        raise ValueError(f"image {path} cannot be decoded ({reason}); replace the file") from error


def upright_rgb(image: Image.Image) -> Image.Image:
    """Turn a picture by its EXIF data, and its pixels into RGB of 8 bits a channel.

    What is so already is returned as it is.
    Transparency is dropped, as CLIP's preprocessing does; of 16 bits the upper eight are kept. A
    ValueError refuses pictures without a pixel, and pixels of 32 bits or floats.
    """
    if 0 in image.size:
        raise ValueError(f"the picture is empty: {image.width} x {image.height} px")
    # Of numbers without a largest one a file does not say what is white.
    if image.mode in ("I", "F"):
        raise ValueError(
            f"pixels of mode {image.mode} have no range from black to white; save the picture with "
            "8 bits a channel"
        )
    image.load()
    # Only what has to change is copied, or a worker would copy every photograph twice.
    if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    return image if image.mode == "RGB" else image.convert("RGB")


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Copy the pixels of an RGB picture: (3, H, W) uint8."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def fit_longest(image: Image.Image, size: int) -> Image.Image:
    """Scale a picture, bicubic, so that its longest side has ``size`` px.

    Reference: the student's preprocessing of CLIPSelf, arXiv 2310.01403, without its padding.
    """
    return image.resize(fitted_size(image.size, size), Image.Resampling.BICUBIC)


def fitted_size(
    sides: tuple[int, int], longest: int, shortest: int | None = None
) -> tuple[int, int]:
    """Scale two sides (px) so that the longest has a given length; each is at least 1.

    With ``shortest``, that of the two limits holds which is met first.
    """
    scale = longest / max(sides)
    if shortest is not None:
        scale = min(scale, shortest / min(sides))
    first, second = (max(1, round(side * scale)) for side in sides)
    return first, second


def cut_crops(image: Image.Image, boxes: np.ndarray, size: int) -> Tensor:
    """Cut boxes, scale each crop's longest side to ``size`` px, and centre it on black.

    From (R, 4) XYXY px to (R, 3, size, size) uint8; R may be 0.

    Reference: the teacher's preprocessing of CLIPSelf, arXiv 2310.01403.
    """
    # Cats to an empty tensor of the right shape where there is no box.
    crops = [torch.zeros(0, 3, size, size, dtype=torch.uint8)]
    for box in boxes:
        crop = fit_longest(image.crop(_whole(box)), size)
        canvas = Image.new("RGB", (size, size))
        canvas.paste(crop, ((size - crop.width) // 2, (size - crop.height) // 2))
        crops.append(to_tensor(canvas)[None])
    return torch.cat(crops)


def cut_regions(
    image: Image.Image, boxes: np.ndarray, size: int | None, pixels: Tensor | None = None
) -> Tensor | list[Tensor]:
    """Cut boxes (R, 4) XYXY px for a teacher.

    As ``cut_crops``; for a size of None R tensors (3, hi, wi) uint8, which are left for
    ``layers.resize_crops`` as they are cut. ``pixels`` (3, H, W) are the picture's, where they are
    at hand.
    """
    if size is not None:
        return cut_crops(image, boxes, size)
    pixels = to_tensor(image) if pixels is None else pixels
    return [_cut(image, pixels, *_whole(box)) for box in boxes]


def _cut(
    image: Image.Image, pixels: Tensor, left: int, top: int, right: int, bottom: int
) -> Tensor:
    """Cut a box of ``pixels``, which are those of the picture; beyond its edges it is black."""
    if left < 0 or top < 0 or right > image.width or bottom > image.height:
        return to_tensor(image.crop((left, top, right, bottom)))
    return pixels[:, top:bottom, left:right].clone()


def _whole(box: np.ndarray) -> tuple[int, int, int, int]:
    """Round half to even as PIL does, but never to an empty crop."""
    left, top, right, bottom = (round(float(side)) for side in box)
    return left, top, max(right, left + 1), max(bottom, top + 1)
