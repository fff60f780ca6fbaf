"""Pictures of labels and of segments."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipself_d2.parts.label_maps import (
    check_segments,
    read_label_map,
    read_segment_colours,
    segment_ids,
)

LABELS = np.array([[0, 1, 846], [255, 65535, 2]])


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_maps_of_8_and_16_bit(name: str, kind: type, tmp_path: Path) -> None:
    labels = np.minimum(LABELS, np.iinfo(kind).max).astype(kind)
    Image.fromarray(labels).save(tmp_path / name)
    got = read_label_map(str(tmp_path / name))
    assert got.dtype == np.int64
    assert np.array_equal(got, labels)


def test_a_palette_gives_its_numbers_not_its_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(np.array([[0, 3], [2, 1]], np.uint8)).convert("P")
    picture.putpalette([9, 8, 7] * 4)
    picture.putdata([0, 3, 2, 1])
    picture.save(tmp_path / "a.png")
    assert read_label_map(str(tmp_path / "a.png")).tolist() == [[0, 3], [2, 1]]


def test_colours_are_no_labels_and_labels_no_segments(tmp_path: Path) -> None:
    Image.new("RGB", (2, 2)).save(tmp_path / "colours.png")
    Image.new("L", (2, 2)).save(tmp_path / "labels.png")
    with pytest.raises(ValueError, match=r"colours\.png has the mode RGB"):
        read_label_map(str(tmp_path / "colours.png"))
    with pytest.raises(ValueError, match=r"labels\.png has the mode L"):
        read_segment_colours(str(tmp_path / "labels.png"))


def test_missing_and_damaged_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        read_label_map(str(tmp_path / "nowhere.png"))
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n12345")
    with pytest.raises(ValueError, match=r"half\.png cannot be decoded"):
        read_label_map(str(tmp_path / "half.png"))


def test_ids_are_joined_from_three_bytes() -> None:
    assert segment_ids(np.array([[[5, 1, 0], [0, 0, 1]]], np.uint8)).tolist() == [[261, 65536]]


def test_segments_and_pixels_belong_together() -> None:
    ids, segments = np.array([[0, 3, 3, 4]]), [{"id": 3}, {"id": 4}]
    check_segments(ids, segments, "a.png")
    with pytest.raises(ValueError, match="no pixel of segment 5"):
        check_segments(ids, [*segments, {"id": 5}], "a.png")
    with pytest.raises(ValueError, match="has pixels of segment 4"):
        check_segments(ids, segments[:1], "a.png")
    check_segments(ids, segments[:1], "a.png", all_listed=False)


def test_areas_tell_the_map_of_another_picture() -> None:
    ids = np.array([[7] * 80 + [256] * 5 + [0] * 15])
    check_segments(ids, [{"id": 7, "area": 80}, {"id": 256, "area": 5}], "a.png")
    with pytest.raises(ValueError, match=r"a\.png has segments of other areas than .* by 10 px"):
        check_segments(ids, [{"id": 7, "area": 90}, {"id": 256, "area": 5}], "a.png")
