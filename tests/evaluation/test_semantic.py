"""Mean intersection over union on maps that can be counted by hand."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from clipself_d2.evaluation.semantic import SemanticEvaluator

NAMES = ("cat", "dog", "sky", "sea")
TRUTH = np.array([[0, 0, 0, 0, 1, 1], [2, 2, 2, 2, 2, 255]])
FOUND = np.array([[0, 0, 0, 3, 1, 0], [2, 2, 2, 2, 1, 3]])
# cat 3 of 5, dog 1 of 3, sky 4 of 5, sea 0 of 1 (in no truth).


def make(truth: np.ndarray = TRUTH, **options) -> SemanticEvaluator:
    record = {"file_name": "a.jpg", "sem_seg_file_name": "a.png"}
    return SemanticEvaluator(
        records=[record], read_truth=lambda record: truth, class_names=NAMES, **options
    )


def scores(found: np.ndarray = FOUND) -> list[dict[str, torch.Tensor]]:
    planes = torch.nn.functional.one_hot(torch.from_numpy(found), len(NAMES)).permute(2, 0, 1)
    return [{"sem_seg": planes.float()}]


def run(evaluator: SemanticEvaluator) -> dict[str, float]:
    evaluator.process([{"file_name": "a.jpg"}], scores())
    return evaluator.evaluate()["sem_seg"]


def test_both_means_and_what_detectron2_prints() -> None:
    got = run(make())
    assert got["mIoU"] == pytest.approx(100 * (3 / 5 + 1 / 3 + 4 / 5) / 3)
    assert got["mIoU_union"] == pytest.approx(100 * (3 / 5 + 1 / 3 + 4 / 5 + 0) / 4)
    assert got["pACC"] == pytest.approx(100 * 8 / 11)
    assert got["mACC"] == pytest.approx(100 * (3 / 4 + 1 / 2 + 4 / 5) / 3)
    assert got["fwIoU"] == pytest.approx(100 * (4 * 3 / 5 + 2 * 1 / 3 + 5 * 4 / 5) / 11)


def test_splits_and_the_table_of_classes(tmp_path: Path) -> None:
    got = run(
        make(
            novel_mask=[False, True, False, False],
            is_thing=[True, True, False, False],
            output_dir=str(tmp_path),
        )
    )
    assert got["mIoU_novel"] == pytest.approx(100 / 3)
    assert got["mIoU_base"] == pytest.approx(100 * (3 / 5 + 4 / 5) / 2)
    assert got["mIoU_thing"] == pytest.approx(100 * (3 / 5 + 1 / 3) / 2)
    assert got["mIoU_stuff"] == pytest.approx(80)
    with (tmp_path / "classes.csv").open() as file:
        table = {row["class"]: row for row in csv.DictReader(file)}
    assert table["dog"]["split"] == "novel"
    assert float(table["sky"]["IoU"]) == pytest.approx(80)
    assert table["sea"]["predicted_px"] == "1"


def test_pictures_add_up_in_any_order() -> None:
    once, twice = make(), make()
    for _ in range(2):
        twice.process([{"file_name": "a.jpg"}], scores())
    assert run(once) == twice.evaluate()["sem_seg"]


def test_folded_classes_are_one_background() -> None:
    truth, found = np.array([[0, 1, 2, 2]]), np.array([[0, 1, 2, 3]])
    evaluator = make(truth, fold_from=2)
    evaluator.process([{"file_name": "a.jpg"}], scores(found))
    assert evaluator.evaluate()["sem_seg"]["mIoU_union"] == 100.0


def test_a_label_that_is_no_class_names_file_and_value() -> None:
    with pytest.raises(ValueError, match=r"a\.png has the label 7, but there are 4 classes"):
        run(make(np.where(TRUTH == 1, 7, TRUTH)))


def test_a_map_of_another_size_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"\(2, 5\)"):
        run(make(TRUTH[:, :5]))
