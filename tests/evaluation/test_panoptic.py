"""Panoptic quality on pictures that can be counted by hand."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.evaluation.panoptic import (
    PanopticQualityEvaluator,
    count_matches,
    panoptic_quality,
)

CAT, DOG, SKY = 0, 1, 2


def strip(*runs: tuple[int, int]) -> np.ndarray:
    """One row of pixels: (id, how many)."""
    return np.concatenate([np.full(count, number, np.int32) for number, count in runs])[None]


def rows(*labels: tuple[int, int], crowd: Sequence[int] = ()) -> list[dict[str, int]]:
    return [{"id": n, "category_id": c, "iscrowd": int(n in crowd)} for n, c in labels]


def count(predicted, found, true, wanted) -> dict[int, list[float]]:
    counts = count_matches(predicted, found, true, wanted, 3)
    return {label: row.tolist() for label, row in enumerate(counts) if row.any()}


TRUE, WANTED = strip((7, 10), (8, 10)), rows((7, CAT), (8, SKY))


def test_an_equal_map_is_perfect_whatever_its_ids() -> None:
    got = count(strip((1, 10), (2, 10)), rows((1, CAT), (2, SKY)), TRUE, WANTED)
    assert got == {CAT: [1, 1, 0, 0], SKY: [1, 1, 0, 0]}


def test_a_match_needs_more_than_half_of_the_union() -> None:
    # 10 of 20 pixels: exactly one half, no match on either side.
    got = count(strip((1, 20)), rows((1, CAT)), TRUE, WANTED)
    assert got == {CAT: [0, 0, 1, 1], SKY: [0, 0, 0, 1]}
    got = count(strip((1, 12), (2, 8)), rows((1, CAT), (2, SKY)), TRUE, WANTED)
    assert got == {CAT: [10 / 12, 1, 0, 0], SKY: [0.8, 1, 0, 0]}


def test_a_wrong_class_is_a_miss_and_a_false_positive() -> None:
    got = count(strip((1, 10), (2, 10)), rows((1, DOG), (2, SKY)), TRUE, WANTED)
    assert got == {CAT: [0, 0, 0, 1], DOG: [0, 0, 1, 0], SKY: [1, 1, 0, 0]}


def test_a_split_segment_matches_by_its_larger_part() -> None:
    got = count(strip((1, 7), (3, 3), (2, 10)), rows((1, CAT), (3, CAT), (2, SKY)), TRUE, WANTED)
    assert got == {CAT: [0.7, 1, 1, 0], SKY: [1, 1, 0, 0]}


def test_merged_segments_match_one_of_them_at_most() -> None:
    true, wanted = strip((7, 14), (8, 6)), rows((7, CAT), (8, CAT))
    assert count(strip((1, 20)), rows((1, CAT)), true, wanted) == {CAT: [0.7, 1, 0, 1]}


def test_void_is_taken_out_of_the_prediction() -> None:
    true, wanted = strip((0, 8), (7, 12)), rows((7, CAT))
    assert count(strip((1, 20)), rows((1, CAT)), true, wanted) == {CAT: [1, 1, 0, 0]}
    # More than half of the prediction is void: not counted; half of it: counted.
    assert count(strip((1, 12), (0, 8)), rows((1, DOG)), true, wanted) == {CAT: [0, 0, 0, 1]}
    half = count(strip((1, 16), (0, 4)), rows((1, DOG)), true, wanted)
    assert half == {CAT: [0, 0, 0, 1], DOG: [0, 0, 1, 0]}


def test_a_crowd_is_no_miss_and_hides_predictions_of_its_class_alone() -> None:
    true, wanted = strip((7, 15), (8, 5)), rows((7, CAT), (8, SKY), crowd=[7])
    sky = {SKY: [1, 1, 0, 0]}
    assert count(strip((1, 15), (2, 5)), rows((1, CAT), (2, SKY)), true, wanted) == sky
    got = count(strip((1, 15), (2, 5)), rows((1, DOG), (2, SKY)), true, wanted)
    assert got == {DOG: [0, 0, 1, 0], **sky}


def test_a_missing_segment_is_a_miss() -> None:
    got = count(strip((0, 10), (2, 10)), rows((2, SKY)), TRUE, WANTED)
    assert got == {CAT: [0, 0, 0, 1], SKY: [1, 1, 0, 0]}


def test_quality_is_averaged_over_the_classes_that_occur() -> None:
    counts = np.array([[1.6, 2, 1, 1], [0, 0, 0, 3], [0, 0, 0, 0]])
    got = panoptic_quality(counts)
    assert got["PQ"] == pytest.approx(100 * (1.6 / 3 + 0) / 2)
    assert got["SQ"] == pytest.approx(100 * (0.8 + 0) / 2)
    assert got["RQ"] == pytest.approx(100 * (2 / 3 + 0) / 2)
    assert np.isnan(panoptic_quality(counts[2:])["PQ"])


@pytest.fixture
def scene(tmp_path: Path):
    """A record of a picture of two segments, and the evaluator of its data set."""
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[:, :3] = (5, 1, 0)  # 261
    colours[:, 3:] = (0, 0, 1)  # 65536
    path = tmp_path / "a.png"
    Image.fromarray(colours).save(path)
    record = {
        "file_name": "a.jpg",
        "pan_seg_file_name": str(path),
        "segments_info": rows((261, CAT), (65536, SKY)),
    }
    tables = {"class_names": ["cat", "dog", "sky"], "is_thing": [True, True, False]}

    def make(**changes):
        return PanopticQualityEvaluator(
            records=[{**record, **changes}], novel_mask=[True, False, False], **tables
        )

    return make


def output() -> list[dict[str, object]]:
    ids = torch.tensor([1, 1, 1, 2, 2, 2]).expand(4, 6)
    return [{"panoptic_seg": (ids, rows((1, CAT), (2, SKY)))}]


def test_splits_are_scored_apart(scene) -> None:
    evaluator = scene()
    evaluator.process([{"file_name": "a.jpg"}], output())
    scores = evaluator.evaluate()["panoptic_seg"]
    names = ("PQ", "PQ_thing", "PQ_stuff", "PQ_novel", "PQ_base")
    assert [scores[name] for name in names] == [100.0] * 5


def test_a_picture_that_is_not_the_files_is_an_error_that_names_it(scene) -> None:
    extra = rows((261, CAT), (65536, SKY), (9, DOG))
    with pytest.raises(ValueError, match=r"a\.png has no pixel of segment 9"):
        scene(segments_info=extra).process([{"file_name": "a.jpg"}], output())
    with pytest.raises(ValueError, match=r"a\.png has pixels of segment 65536"):
        scene(segments_info=extra[:1]).process([{"file_name": "a.jpg"}], output())


def test_a_prediction_of_another_size_is_an_error(scene) -> None:
    wrong = [{"panoptic_seg": (torch.ones(4, 5), [])}]
    with pytest.raises(ValueError, match=r"\(4, 5\)"):
        scene().process([{"file_name": "a.jpg"}], wrong)
