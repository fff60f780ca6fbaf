import numpy as np
import pytest
from PIL import Image

from clipself_d2.data.items import picture_item, read_records, scale_boxes


def test_boxes_are_scaled_by_the_longest_side() -> None:
    scaled = scale_boxes(np.array([[0.0, 0.0, 10.0, 5.0]]), (100, 49), (200, 98))
    assert scaled.tolist() == [[0.0, 0.0, 20.0, 10.0]]


def test_an_item_has_the_students_pixels_and_the_originals_size() -> None:
    record = {"file_name": "a.png", "image_id": 5, "annotations": []}
    item = picture_item(record, Image.new("RGB", (80, 60)), Image.new("RGB", (40, 30)))
    assert item.pop("image").shape == (3, 30, 40)
    assert item == {"file_name": "a.png", "image_id": 5, "height": 60, "width": 80}


def test_no_data_set_names_the_key() -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TEST is empty"):
        read_records((), "DATASETS.TEST")
