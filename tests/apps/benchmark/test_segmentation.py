import pytest
import torch

from clipself_d2.apps.benchmark import segmentation
from clipself_d2.apps.benchmark.measure import BenchmarkOptions
from clipself_d2.apps.benchmark.segmentation import (
    build_join,
    build_view,
    measure_aggregation,
    measure_joining,
)

TINY = BenchmarkOptions(sizes=(64,), repeats=1, isolated=False)


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(segmentation, "CLASS_COUNTS", (2, 6))
    monkeypatch.setattr(segmentation, "SHORTLISTS", (0, 3))
    monkeypatch.setattr(segmentation, "_JOIN_CLASSES", 2)


def test_a_shortlist_is_measured_where_it_leaves_classes_out() -> None:
    rows = measure_aggregation(TINY)
    cases = [(row["classes"], row["shortlist"]) for row in rows]
    assert cases == [(2, "none"), (6, "none"), (6, 3)]
    assert rows[0]["time ratio"] == 1


def test_a_view_scores_every_class_and_leaves_out_what_the_shortlist_does() -> None:
    assert (build_view(64, 6, 0, "cpu")() > -100).all()
    left_out = (build_view(64, 6, 3, "cpu")() == -100).flatten(2).all(dim=2)
    assert left_out.sum() == 3


def test_windows_one_by_one_give_what_kept_windows_give() -> None:
    assert [row["windows"] for row in measure_joining(TINY)] == ["kept", "one by one"]
    maps = []
    for lazy in (False, True):
        torch.manual_seed(0)
        maps.append(build_join(lazy, "cpu")())
    assert torch.equal(*maps)
