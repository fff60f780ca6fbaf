import pytest
import torch

from clipself_d2.apps.benchmark.measure import BenchmarkOptions
from clipself_d2.apps.benchmark.text import (
    benchmark_classes,
    benchmark_text,
    build_head,
    make_predictor,
    make_regions,
)

TINY = BenchmarkOptions(
    model="ViT-Ti-8-emoji", repeats=1, text_classes=1, class_counts=(5, 50), isolated=False
)


def test_one_by_one_gives_the_embeddings_of_batches() -> None:
    one_by_one, ours = benchmark_text(TINY)
    assert (one_by_one["variant"], ours["variant"]) == ("one by one", "ours")
    assert ours["prompts"] == 126
    assert ours["largest difference"] < 1e-5
    assert one_by_one["speed ratio"] == 1


def test_no_classes_are_refused() -> None:
    with pytest.raises(ValueError, match="--classes is 0"):
        benchmark_text(BenchmarkOptions(text_classes=0))


def test_every_class_count_has_a_row_for_each_task() -> None:
    rows = benchmark_classes(TINY)
    assert [(row["task"], row["regions"], row["classes"]) for row in rows] == [
        ("training", 512, 5),
        ("training", 512, 50),
        ("inference", 1000, 5),
        ("inference", 1000, 50),
    ]
    assert rows[0]["time ratio"] == rows[2]["time ratio"] == 1
    assert all(row["ms"] > 0 for row in rows)


def test_a_run_leaves_no_gradients_behind() -> None:
    features, proposals = make_regions(8, "cpu")
    assert len(features) == len(proposals) == 8
    predictor = make_predictor(12, "cpu")
    assert predictor(features)[0].shape == (8, 13)
    assert predictor.classifier.base_mask.sum() == 9
    step = build_head(12, "cpu", training=True)
    with torch.no_grad(), pytest.raises(RuntimeError, match="does not require grad"):
        step()
    step()
