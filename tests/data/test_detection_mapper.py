"""Large-scale jitter: sizes, places, boxes and masks, and how the keys reach it."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetMapper
from detectron2.data.transforms import AugInput, AugmentationList
from detectron2.structures import BoxMode, PolygonMasks
from PIL import Image

from clipself_d2.config import add_clipself_config
from clipself_d2.data.detection_mapper import (
    PictureMapper,
    RandomSquareCrop,
    build_train_mapper,
    lsj_augmentations,
    semantic_augmentations,
)

HEIGHT, WIDTH = 40, 60


@pytest.fixture(autouse=True)
def seeded() -> None:
    np.random.seed(0)


@pytest.fixture
def cfg() -> CfgNode:
    config = get_cfg()
    add_clipself_config(config)
    config.INPUT.FORMAT = "RGB"
    config.MODEL.MASK_ON = True
    return config


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    """A green rectangle on black, with its box and polygon; and a small one in a corner."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[10:30, 15:45] = (0, 255, 0)
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    corners = [[15, 10, 45, 10, 45, 30, 15, 30], [0, 0, 4, 0, 4, 4, 0, 4]]
    boxes = [[15, 10, 45, 30], [0, 0, 4, 4]]
    return {
        "file_name": str(tmp_path / "picture.png"),
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": 1,
        "annotations": [
            {
                "bbox": box,
                "bbox_mode": BoxMode.XYXY_ABS,
                "category_id": 0,
                "segmentation": [polygon],
            }
            for box, polygon in zip(boxes, corners, strict=True)
        ],
    }


def draw(size: int, scale_range: tuple[float, float], times: int = 1) -> list[tuple[int, int]]:
    picture = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    augment = AugmentationList(lsj_augmentations(size, scale_range))
    sizes = []
    for _ in range(times):
        item = AugInput(picture)
        augment(item)
        sizes.append(item.image.shape[:2])
    return sizes


@pytest.mark.parametrize(
    ("ratio", "expected"),
    [(0.1, (7, 10)), (0.5, (33, 50)), (1.0, (67, 100)), (1.2, (80, 100)), (2.0, (100, 100))],
)
def test_longest_side_is_the_ratio_times_the_size_until_the_crop(ratio, expected) -> None:
    assert draw(100, (ratio, ratio)) == [expected]


def test_ratios_fill_the_range() -> None:
    ratios = np.array([max(size) for size in draw(100, (0.1, 0.9), times=300)]) / 100
    assert 0.1 <= ratios.min() < 0.13
    assert 0.87 < ratios.max() <= 0.9
    assert abs(ratios.mean() - 0.5) < 0.04


def test_rows_and_columns_of_the_crop_are_drawn_apart() -> None:
    crop = RandomSquareCrop(20)
    places = {
        (found.y0, found.x0)
        for found in (crop.get_transform(np.zeros((22, 22))) for _ in range(200))
    }
    assert places == {(y, x) for y in range(3) for x in range(3)}


@pytest.mark.parametrize(("flip", "corner"), [("horizontal", (0, 9)), ("vertical", (9, 0))])
def test_half_of_the_pictures_are_flipped(flip: str, corner: tuple[int, int]) -> None:
    picture = np.zeros((10, 10, 3), np.uint8)
    picture[0, 0] = 255
    augment = AugmentationList(lsj_augmentations(10, (1.0, 1.0), flip=flip))
    flipped = 0
    for _ in range(200):
        item = AugInput(picture.copy())
        augment(item)
        flipped += int(item.image[corner][0] == 255)
    assert 70 < flipped < 130


def test_no_flip_leaves_resize_and_crop() -> None:
    assert len(lsj_augmentations(10, flip="none")) == 2


def rectangle_of(picture: torch.Tensor) -> list[int]:
    rows, columns = (picture[1] > 127).nonzero(as_tuple=True)
    return [int(columns.min()), int(rows.min()), int(columns.max()) + 1, int(rows.max()) + 1]


def enlarge_alone(mapper: DatasetMapper) -> None:
    """Let the longest side always become twice the size before the crop."""
    resize = mapper.augmentations.augs[0]
    resize.min_scale = resize.max_scale = 2.0


def test_boxes_and_masks_follow_the_picture(cfg: CfgNode, record) -> None:
    cfg.INPUT.LSJ_SIZE = 50
    mapper = build_train_mapper(cfg)
    cut = 0
    for _ in range(60):
        item = mapper(record)
        picture, truth = item["image"], item["instances"]
        height, width = picture.shape[1:]
        assert max(height, width) <= 50
        assert truth.image_size == (height, width)
        seen = rectangle_of(picture)
        assert (truth.gt_boxes.tensor[0] - torch.tensor(seen)).abs().max() <= 1.0
        # What a mask head is trained on: the polygon inside of the box, all of which it fills.
        assert isinstance(truth.gt_masks, PolygonMasks)
        target = truth.gt_masks.crop_and_resize(truth.gt_boxes.tensor, 14)
        assert target[0].float().mean() > 0.95
        cut += len(truth) == 1
    assert 0 < cut < 60


def test_target_of_a_cut_polygon_is_that_of_the_cut_shape(cfg: CfgNode, record) -> None:
    # A triangle of which the crop keeps the left half.
    record["annotations"] = record["annotations"][:1]
    record["annotations"][0].update(bbox=[10, 10, 50, 30], segmentation=[[10, 30, 50, 30, 50, 10]])
    cfg.INPUT.LSJ_SIZE = 30
    cfg.INPUT.RANDOM_FLIP = "none"
    mapper = build_train_mapper(cfg)
    enlarge_alone(mapper)
    for _ in range(10):
        truth = mapper(record)["instances"]
        if not len(truth):
            continue
        x0, y0, x1, y1 = truth.gt_boxes.tensor[0].tolist()
        target = truth.gt_masks.crop_and_resize(truth.gt_boxes.tensor, 14)[0].float()
        (polygon,) = truth.gt_masks.polygons[0]
        (left, bottom), _, (right, top) = polygon.reshape(3, 2).tolist()
        middle = (torch.arange(14) + 0.5) / 14
        x, y = x0 + middle * (x1 - x0), y0 + middle[:, None] * (y1 - y0)
        expected = y > bottom - (x - left) / (right - left) * (bottom - top)
        assert (target - expected.float()).abs().mean() < 0.1


def test_pictures_without_a_box_stay(cfg: CfgNode, record) -> None:
    record["annotations"] = record["annotations"][1:]
    cfg.INPUT.LSJ_SIZE = 10
    mapper = build_train_mapper(cfg)
    enlarge_alone(mapper)
    lengths = {len(mapper(record)["instances"]) for _ in range(20)}
    assert 0 in lengths


def test_size_0_keeps_detectron2s_augmentations(cfg: CfgNode) -> None:
    names = [type(part).__name__ for part in build_train_mapper(cfg).augmentations.augs]
    assert names == ["ResizeShortestEdge", "RandomFlip"]


def test_crop_of_detectron2_is_ignored_with_a_warning(cfg: CfgNode, caplog) -> None:
    cfg.INPUT.LSJ_SIZE = 50
    cfg.INPUT.CROP.ENABLED = True
    with caplog.at_level(logging.WARNING, "clipself_d2.data.detection_mapper"):
        mapper = build_train_mapper(cfg)
    assert "INPUT.CROP is ignored" in caplog.text
    names = [type(part).__name__ for part in mapper.augmentations.augs]
    assert names == ["ResizeScale", "RandomSquareCrop", "RandomFlip"]
    assert not mapper.recompute_boxes


@pytest.mark.parametrize("scale_range", [(0.0, 2.0), (2.0, 0.1), (1.0,)])
def test_a_wrong_range_is_refused(scale_range: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="scale_range is"):
        lsj_augmentations(50, scale_range)


def test_pixels_are_those_of_detectron2(cfg: CfgNode, record, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (WIDTH, HEIGHT, 3), dtype=np.uint8)
    turned = Image.fromarray(pixels)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    for name in ("picture.png", "turned.jpg"):
        record["file_name"] = str(tmp_path / name)
        for order in ("RGB", "BGR"):
            cfg.INPUT.FORMAT = order
            ours, theirs = PictureMapper(cfg, is_train=False), DatasetMapper(cfg, is_train=False)
            item = ours(record)
            assert torch.equal(item["image"], theirs(record)["image"])
            assert item["file_name"] == record["file_name"]


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_damaged_picture_is_named(cfg: CfgNode, record, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "picture.png").write_bytes(content)
    for is_train in (True, False):
        with pytest.raises(ValueError, match=r"^image /.*picture\.png cannot be decoded .*replace"):
            PictureMapper(cfg, is_train=is_train)(record)


def test_damaged_labels_are_named(cfg: CfgNode, record, tmp_path: Path) -> None:
    labels = tmp_path / "labels.png"
    Image.new("L", (WIDTH, HEIGHT)).save(labels)
    record["sem_seg_file_name"] = str(labels)
    assert PictureMapper(cfg, is_train=True)(record)["sem_seg"].ndim == 2
    labels.write_bytes(labels.read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"picture\.png with its labels /.*labels\.png"):
        PictureMapper(cfg, is_train=True)(record)


def test_a_missing_picture_is_one_sentence(cfg: CfgNode, record) -> None:
    record["file_name"] = "/nowhere/gone.png"
    with pytest.raises(FileNotFoundError, match=r"^image /nowhere/gone\.png does not exist"):
        PictureMapper(cfg, is_train=True)(record)


def test_a_picture_of_another_size_is_named_as_the_data_set_names_it(cfg: CfgNode, record) -> None:
    record["width"] = 7
    with pytest.raises(ValueError, match=r"for image /\S*picture\.png, got") as caught:
        PictureMapper(cfg, is_train=True)(record)
    assert "clipself" not in str(caught.value).replace(record["file_name"], "")


def test_a_shape_that_leaves_no_pixel_is_named(cfg: CfgNode, record, tmp_path: Path) -> None:
    Image.new("RGB", (5000, 1)).save(tmp_path / "line.png")
    record = {"file_name": str(tmp_path / "line.png"), "width": 5000, "height": 1, "image_id": 1}
    with pytest.raises(ValueError, match=r"line\.png of 5000 x 1 px cannot be prepared"):
        PictureMapper(cfg, is_train=False)(record)


def test_pictures_of_shards_are_read(
    cfg: CfgNode, tmp_path: Path, write_shard: Callable[..., Path], jpeg: Callable[[int], bytes]
) -> None:
    shard = write_shard(tmp_path / "0.tar", {"a.jpg": jpeg(200)})
    record = {"file_name": f"{shard}::a.jpg", "width": 20, "height": 10, "image_id": 1}
    image = PictureMapper(cfg, is_train=False)(record)["image"]
    assert abs(int(image[0].float().mean()) - 200) < 3


def test_semantic_augmentations_resize_then_crop_where_no_class_fills_the_crop() -> None:
    chain = semantic_augmentations([80], crop_size=(60, 60), max_area=0.95, flip="none")
    labels = np.zeros((HEIGHT, WIDTH), np.uint8)
    labels[:, WIDTH // 2 :] = 1
    for _ in range(5):
        given = AugInput(np.full((HEIGHT, WIDTH, 3), 128, np.uint8), sem_seg=labels)
        AugmentationList(chain)(given)
        assert given.image.shape == (60, 60, 3)
        assert given.sem_seg.shape == (60, 60)
        assert np.bincount(given.sem_seg.ravel()).max() <= 0.95 * 60 * 60
