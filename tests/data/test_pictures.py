import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.pictures import (
    check_picture,
    cut_crops,
    cut_regions,
    fit_longest,
    fitted_size,
    read_picture,
    to_tensor,
    upright_rgb,
)

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "preprocess.npz")
MEAN = np.array([0.48145466, 0.4578275, 0.40821073]).reshape(3, 1, 1)
STD = np.array([0.26862954, 0.26130258, 0.27577711]).reshape(3, 1, 1)


def normalise(pixels: torch.Tensor) -> np.ndarray:
    return (pixels.numpy() / 255.0 - MEAN) / STD


def test_the_students_picture_is_the_published_one() -> None:
    image = fit_longest(Image.fromarray(GOLDEN["image"]), 160)
    padded = torch.zeros(3, 160, 160, dtype=torch.uint8)
    pixels = to_tensor(image)
    padded[:, : pixels.shape[1], : pixels.shape[2]] = pixels
    np.testing.assert_allclose(normalise(padded), GOLDEN["det"], atol=1e-5)
    assert pytest.approx(float(GOLDEN["det_scale"])) == 160 / 131


@pytest.mark.parametrize("grid", ["2x3", "5x6"])
def test_the_teachers_crops_of_tiles_are_the_published_ones(grid: str) -> None:
    crops = GOLDEN[f"grid_{grid}_crops"]
    boxes = GOLDEN[f"grid_{grid}_boxes_px"][: len(crops)]
    ours = cut_crops(Image.fromarray(GOLDEN["image"]), boxes, 64)
    np.testing.assert_allclose(np.stack([normalise(crop) for crop in ours]), crops, atol=1e-5)


def test_the_teachers_crop_of_a_proposal_is_the_published_one() -> None:
    box = GOLDEN["proposal_crop_box"][None]
    ours = cut_crops(Image.fromarray(GOLDEN["image"]), box, 64)
    np.testing.assert_allclose(normalise(ours[0]), GOLDEN["proposal_crop"], atol=1e-5)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((400, 300), (1067, 800)), ((900, 300), (1333, 444)), ((100, 100), (800, 800))],
)
def test_a_picture_is_scaled_to_the_first_limit_that_it_meets(size, expected) -> None:
    assert fitted_size(size, 1333, 800) == expected


def test_a_box_thinner_than_a_pixel_gives_a_crop() -> None:
    crops = cut_crops(Image.new("RGB", (20, 20), "red"), np.array([[3.2, 3.2, 3.3, 9.0]]), 8)
    assert crops.shape == (1, 3, 8, 8)
    assert crops[0, 0].max() == 255


@pytest.mark.parametrize("at_hand", [False, True])
def test_pieces_are_what_pil_cuts_beyond_the_edges_too(at_hand: bool) -> None:
    pixels = np.random.default_rng(0).integers(1, 256, (20, 30, 3), np.uint8)
    picture = Image.fromarray(pixels)
    boxes = np.array(
        [[0, 0, 30, 20], [3.5, 2.5, 9.4, 20.4], [29.8, 4, 29.9, 9], [30, 0, 30, 20], [-2, -1, 5, 9]]
    )
    given = to_tensor(picture) if at_hand else None
    pieces = cut_regions(picture, boxes, None, given)
    for piece, box in zip(pieces, boxes, strict=True):
        left, top, right, bottom = (round(float(side)) for side in box)
        expected = picture.crop((left, top, max(right, left + 1), bottom))
        assert torch.equal(piece, to_tensor(expected))
    pieces[0].zero_()
    assert given is None or given.all(), "pieces are copies"


def test_no_box_gives_no_crop() -> None:
    assert cut_crops(Image.new("RGB", (4, 4)), np.zeros((0, 4)), 8).shape == (0, 3, 8, 8)


def test_missing_and_damaged_pictures_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.jpg"):
        read_picture(tmp_path / "gone.jpg")
    file = tmp_path / "cut.jpg"
    Image.fromarray(GOLDEN["image"]).save(file)
    for content in (file.read_bytes()[:600], b"hello"):
        file.write_bytes(content)
        with pytest.raises(ValueError, match=r"cut\.jpg.*cannot be decoded"):
            read_picture(file)


def test_a_turned_picture_is_read_upright(tmp_path: Path) -> None:
    image = Image.new("RGB", (30, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert read_picture(tmp_path / "turned.jpg").size == (20, 30)


GREY = np.tile(np.arange(200, dtype=np.uint8), (10, 1))


def write_bomb(path: Path, side: int = 60_000) -> Path:
    """A PNG of side x side px in a few hundred bytes."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + check

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    parts = (b"IHDR", header), (b"IDAT", zlib.compress(bytes(1000))), (b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))
    return path


@pytest.mark.parametrize("read", [read_picture, check_picture])
def test_a_picture_that_would_fill_the_memory_is_named(read, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"bomb\.png cannot be decoded .*3600000000 pixels"):
        read(write_bomb(tmp_path / "bomb.png"))


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bits_are_read_as_8(suffix: str, tmp_path: Path) -> None:
    file = tmp_path / f"deep{suffix}"
    Image.fromarray(GREY.astype(np.uint16) * 256 + 77).save(file)
    assert np.array_equal(np.asarray(read_picture(file)), np.stack([GREY] * 3, axis=-1))


@pytest.mark.parametrize("kind", [np.int32, np.float32])
def test_numbers_without_a_white_are_refused_by_name(kind, tmp_path: Path) -> None:
    file = tmp_path / "depth.tif"
    Image.fromarray(GREY.astype(kind)).save(file)
    with pytest.raises(ValueError, match=r"depth\.tif .*pixels of mode [IF] .*8 bits a channel"):
        read_picture(file)


@pytest.mark.parametrize("mode", ["RGB", "L", "LA", "P", "RGBA", "CMYK", "1", "YCbCr"])
def test_pictures_of_every_mode_are_read_in_rgb(mode: str, tmp_path: Path) -> None:
    colours = np.repeat(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8), 8, axis=1)
    file = tmp_path / "picture.tif"
    Image.fromarray(colours).convert(mode).save(file)
    picture = read_picture(file)
    assert picture.mode == "RGB"
    assert np.array_equal(np.asarray(picture), colours)


def test_transparency_is_dropped() -> None:
    pixels = np.full((2, 2, 4), (10, 20, 30, 0), np.uint8)
    assert np.asarray(upright_rgb(Image.fromarray(pixels)))[0, 0].tolist() == [10, 20, 30]


def test_a_picture_without_a_pixel_is_refused() -> None:
    with pytest.raises(ValueError, match="is empty: 0 x 5 px"):
        upright_rgb(Image.new("RGB", (0, 5)))


@pytest.mark.parametrize("size", [(5000, 1), (1, 5000), (1, 1)])
def test_extreme_shapes_keep_a_pixel(size: tuple[int, int]) -> None:
    scaled = fit_longest(Image.new("RGB", size), 64)
    assert (max(scaled.size), min(scaled.size)) == (64, 64 if size == (1, 1) else 1)
    assert cut_crops(scaled, np.array([[0, 0, *scaled.size]]), 8).shape == (1, 3, 8, 8)
