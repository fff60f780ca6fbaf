import numpy as np
import pytest
from detectron2.data import MetadataCatalog

from clipself_d2.apps.benchmark.eval import (
    NUM_CLASSES,
    Objects,
    benchmark_evaluation,
    detect,
    lvis_dataset,
    make_objects,
    predictions,
)
from clipself_d2.apps.benchmark.measure import BenchmarkOptions


def test_both_scorers_agree_on_the_made_up_detections() -> None:
    pytest.importorskip("lvis")
    rows = benchmark_evaluation(BenchmarkOptions(scale=0.001, repeats=1, reference=True))
    assert [row["scorer"] for row in rows] == ["lvis", "hotcoco"]
    reference, ours = rows
    assert (ours["images"], ours["detections"], ours["classes"]) == (20, 450, 1203)
    assert 10 < ours["AP"] < 90
    assert ours["AP"] == pytest.approx(reference["AP"], abs=1e-9)
    assert ours["APr"] == pytest.approx(reference["APr"], abs=1e-9, nan_ok=True)
    assert reference["speed ratio"] == 1


def test_without_the_reference_there_is_no_ratio() -> None:
    (row,) = benchmark_evaluation(BenchmarkOptions(scale=0.001, repeats=1))
    assert row["scorer"] == "hotcoco"
    assert "speed ratio" not in row


def test_detections_lie_near_their_objects(rng: np.random.Generator) -> None:
    truth = make_objects(5, rng)
    found, scores = detect(truth, 300, rng)
    assert len(found.boxes) == len(scores) == 300
    assert (np.diff(found.images) >= 0).all()
    assert found.boxes[:, 2:].min() >= 2
    assert 0 <= found.classes.min() <= found.classes.max() < sum(NUM_CLASSES.values())


def test_predictions_are_cut_at_the_images() -> None:
    boxes = np.array([[1.0, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
    found = Objects(np.array([0, 0, 2]), np.array([7, 8, 9]), boxes)
    first, last = predictions(found, np.array([0.5, 0.6, 0.7]))
    assert (first[0], last[0]) == (1, 3)
    assert first[1].pred_classes.tolist() == [7, 8]
    assert last[1].pred_boxes.tensor.tolist() == [[9, 10, 20, 22]]


@pytest.mark.parametrize("scale", [0.0, 1.5])
def test_a_scale_out_of_range_is_refused(scale: float) -> None:
    with pytest.raises(ValueError, match=f"--scale is {scale}"), lvis_dataset(scale):
        pass


def test_the_data_set_is_forgotten() -> None:
    with lvis_dataset(0.001):
        assert "clipself_d2_benchmark_lvis" in MetadataCatalog.list()
    assert "clipself_d2_benchmark_lvis" not in MetadataCatalog.list()
