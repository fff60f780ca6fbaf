"""Masks of another model in the three forms in which they come."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as rle

from clipself_d2.apps.predict.mask_files import check_sizes, read_mask_file

LEFT = np.zeros((4, 6), bool)
LEFT[:, :3] = True
TOP = np.zeros((4, 6), bool)
TOP[0, 3:] = True


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("RGB", (6, 4), (9, 8, 7)).save(folder / "000000000042.png")
    return folder


def masks_of(source: Path, images: Path, maps: Path | None = None):
    kind, pictures = read_mask_file(source, images, maps)
    assert len(pictures) == 1
    return kind, pictures[0], pictures[0].load()


def colours() -> np.ndarray:
    ids = np.where(LEFT, 300, 0) + np.where(TOP, 70_000, 0)
    return np.stack([ids % 256, ids // 256 % 256, ids // 65536], axis=2).astype(np.uint8)


def test_panoptic_files(images: Path, tmp_path: Path) -> None:
    (tmp_path / "pan").mkdir()
    Image.fromarray(colours()).save(tmp_path / "pan" / "000000000042.png")
    rows = [{"id": 70_000, "category_id": 1}, {"id": 300, "category_id": 2}]
    row = {"image_id": 42, "file_name": "000000000042.png", "segments_info": rows}
    (tmp_path / "pan.json").write_text(json.dumps({"annotations": [row]}))
    kind, picture, masks = masks_of(tmp_path / "pan.json", images)
    assert kind == "panoptic"
    assert picture.image_id == 42
    assert np.array_equal(masks, [TOP, LEFT])


@pytest.mark.parametrize("compressed", [True, False])
def test_results_with_run_length_masks(compressed: bool, images: Path, tmp_path: Path) -> None:
    rows = []
    for mask in (LEFT, TOP):
        if compressed:
            encoded = rle.encode(np.asfortranarray(mask.astype(np.uint8)))
            segmentation = {"size": [4, 6], "counts": encoded["counts"].decode()}
        else:
            flat = mask.T.ravel().astype(int)
            edges = np.flatnonzero(np.diff(np.concatenate([[0], flat, [2]])))
            runs = np.diff(np.concatenate([[0], edges])).tolist()
            segmentation = {"size": [4, 6], "counts": runs}
        rows.append({"image_id": 42, "segmentation": segmentation, "score": 0.5})
    (tmp_path / "results.json").write_text(json.dumps(rows))
    kind, picture, masks = masks_of(tmp_path / "results.json", images)
    assert kind == "results"
    assert picture.path.name == "000000000042.png"
    assert np.array_equal(masks, [LEFT, TOP])


@pytest.mark.parametrize("form", ["labels", "colours"])
def test_folders_of_maps(form: str, images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    labels = (3 * LEFT + 7 * TOP + 255 * ~(LEFT | TOP)).astype(np.uint8)
    picture = labels if form == "labels" else colours()
    Image.fromarray(picture).save(folder / "000000000042.png")
    (folder / "._000000000042.png").write_bytes(b"x")
    kind, _, masks = masks_of(folder, images)
    assert kind == "maps"
    assert np.array_equal(masks, [LEFT, TOP])


def test_what_is_missing_or_of_another_form_is_named(images: Path, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_mask_file(tmp_path / "nowhere.json", images)
    (tmp_path / "a.json").write_text('{"images": []}')
    with pytest.raises(ValueError, match=r"a\.json is neither"):
        read_mask_file(tmp_path / "a.json", images)
    (tmp_path / "b.json").write_text("no json")
    with pytest.raises(ValueError, match=r"b\.json is no json"):
        read_mask_file(tmp_path / "b.json", images)
    (tmp_path / "c.json").write_text('[{"image_id": 7, "segmentation": {}}]')
    with pytest.raises(ValueError, match="picture '7'"):
        read_mask_file(tmp_path / "c.json", images)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no png or tif"):
        read_mask_file(tmp_path / "empty", images)


def test_masks_of_another_size_are_refused(images: Path, tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    folder.mkdir()
    Image.fromarray(np.ones((3, 5), np.uint8)).save(folder / "000000000042.png")
    _, picture, masks = masks_of(folder, images)
    with pytest.raises(ValueError, match="are 5 x 3 px, the picture is 6 x 4"):
        check_sizes(picture, masks)
