import pytest
import torch
from detectron2.data import DatasetCatalog

from clipself_d2.apps.analysis.centre_box import centre_box, most_frequent_size, score_centre_box


def record(left, top, width, height, picture=(32, 64)):
    polygon = [left, top, left + width, top, left + width, top + height, left, top + height]
    return {"segmentations": [[polygon]], "height": picture[0], "width": picture[1]}


@pytest.fixture
def names():
    sets = {
        "centre_train": [record(0, 0, 16, 8), record(9, 3, 16, 8), record(1, 1, 40, 20)],
        "centre_val": [record(24, 12, 16, 8), record(0, 0, 16, 8)],
    }
    for name, records in sets.items():
        DatasetCatalog.register(name, lambda records=records: records)
    yield list(sets)
    for name in sets:
        DatasetCatalog.remove(name)


def test_the_size_of_most_objects_is_found_in_parts_of_the_picture():
    rows = [record(0, 0, 16, 8), record(9, 3, 16, 8), record(1, 1, 40, 20)]
    assert most_frequent_size(rows) == (4, 4)
    assert most_frequent_size(rows[2:]) == (10, 10)
    assert most_frequent_size([record(5, 5, 1, 1)]) == (1, 1)


def test_the_box_is_at_the_centre():
    mask = centre_box(32, 64, (4, 4))
    expected = torch.zeros(32, 64, dtype=torch.bool)
    expected[12:20, 24:40] = True
    assert torch.equal(mask, expected)


def test_an_object_at_the_centre_is_found_and_one_elsewhere_missed(names):
    size, scores = score_centre_box(*names)
    assert size == (4, 4)
    assert scores["mIoU"] == 50.0
    assert scores["Pr@90"] == 50.0
    assert scores["oIoU"] == pytest.approx(100 * 128 / 384)


def test_faults_are_named(emoji_data):
    with pytest.raises(ValueError, match="'nowhere', which is no registered"):
        score_centre_box("nowhere", "nowhere")
    with pytest.raises(ValueError, match="emoji_ov_val has no referring expressions"):
        score_centre_box("emoji_ov_val", "emoji_ov_val")
    with pytest.raises(ValueError, match="no reference has an object"):
        most_frequent_size([{"segmentations": [], "height": 4, "width": 4}])
