"""Scores of single classes against sums done by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from clipself_d2.evaluation.class_table import class_ap, class_scores, split_mean, write_class_table


def test_class_ap_reads_all_areas_and_most_detections() -> None:
    precision = np.full((2, 3, 2, 4, 3), 0.25)
    precision[:, :, :, 0, -1] = 0.5
    precision[1, :, 0, 0, -1] = 1.0
    precision[:, :, 1] = -1
    np.testing.assert_array_equal(class_ap(precision), [0.75, math.nan])
    np.testing.assert_array_equal(class_ap(precision[:1]), [0.5, math.nan])


def test_split_mean_leaves_out_classes_without_truth() -> None:
    scores = np.array([0.2, math.nan, 0.6, 1.0])
    assert split_mean(scores, np.array([True, True, True, False])) == pytest.approx(0.4)
    assert math.isnan(split_mean(scores, np.array([False, True, False, False])))
    assert math.isnan(split_mean(scores, np.zeros(4, dtype=bool)))


def test_class_scores_read_their_iou() -> None:
    precision = np.zeros((10, 3, 1, 4, 3))
    precision[..., 0, -1] = np.linspace(0.9, 0.0, 10)[:, None, None]
    recall = np.full((10, 1, 4, 3), 0.1)
    recall[:, :, 0, -1] = 0.8
    scores = {key: float(value[0]) for key, value in class_scores(precision, recall).items()}
    np.testing.assert_allclose(list(scores.values()), [0.45, 0.9, 0.4, 0.8])
    nothing = class_scores(-np.ones((10, 3, 1, 4, 3)), -np.ones((10, 1, 4, 3)))
    assert all(np.isnan(value).all() for value in nothing.values())


def test_a_table_has_a_row_a_class_and_leaves_the_undefined_empty(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    facts = {"class": ["mug, cup", "cat"], "images": [3, 0]}
    write_class_table(path, facts, {"AP": np.array([0.12345678, math.nan])})
    assert path.read_text() == 'class,images,AP\n"mug, cup",3,12.3457\ncat,0,\n'
