"""Open-vocabulary COCO scores against pycocotools and against sums done by hand."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator

Register = Callable[..., str]
Draw = Callable[..., Any]
Score = Callable[..., dict[str, Any]]
BACKENDS = pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])


@pytest.mark.parametrize("max_dets", [None, 3])
def test_faster_coco_eval_agrees(draw_world: Draw, score: Score, max_dets: int | None) -> None:
    pytest.importorskip("faster_coco_eval")
    world = draw_world(0)
    fast, reference = (
        score(world, backend=backend, max_dets_per_image=max_dets)
        for backend in ("faster_coco_eval", "pycocotools")
    )
    for task in ("bbox", "segm"):
        assert fast[task] == pytest.approx(reference[task], abs=1e-12, nan_ok=True)


@BACKENDS
def test_splits_are_means_over_their_classes(draw_world: Draw, score: Score, backend: str) -> None:
    # Of ant, bee, cat, dog and elk (fox has no object), bee and elk are novel; bee is never found.
    world = draw_world(5, crowds=False, apart=True).perfect().without("bee")
    scores = score(world, backend=backend)["segm"]
    expected = {"AP50-base": 100, "AP50-novel": 50, "AP50-all": 80, "AP-base": 100, "AP-novel": 50}
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    # Category ids are not in the order of the classes; names must follow their ids.
    assert scores["AP-bee"] == 0
    for name in ("ant", "cat", "dog", "elk"):
        assert scores[f"AP-{name}"] == pytest.approx(100)
    assert math.isnan(scores["AP-fox"])


def test_the_mean_over_all_classes_is_cocos_own_ap50(draw_world: Draw, score: Score) -> None:
    scores = score(draw_world(6))["bbox"]
    assert scores["AP50-all"] == pytest.approx(scores["AP50"])
    weighted = (3 * scores["AP-base"] + 2 * scores["AP-novel"]) / 5
    assert weighted == pytest.approx(scores["AP"])
    bees = (scores["AP-bee"] + scores["AP-elk"]) / 2
    assert scores["AP-novel"] == pytest.approx(bees)


def test_a_split_without_truth_is_nan_with_a_word(
    draw_world: Draw, score: Score, messages: list[str]
) -> None:
    scores = score(draw_world(8), metadata={"novel_classes": ["fox"]})["bbox"]
    assert math.isnan(scores["AP50-novel"])
    assert math.isnan(scores["AP-novel"])
    assert scores["AP50-base"] == pytest.approx(scores["AP50-all"])
    assert any("no ground truth to score AP50-novel, AP-novel" in text for text in messages)
    assert not any("nan" in text for text in messages)


@pytest.mark.parametrize("novel", [[], None])
def test_without_novel_classes_there_are_no_splits(
    draw_world: Draw, score: Score, messages: list[str], novel: list[str] | None
) -> None:
    scores = score(draw_world(8), metadata={"novel_classes": novel})["bbox"]
    assert not any("novel" in key or "base" in key for key in scores)
    assert scores["AP50-all"] == pytest.approx(scores["AP50"])
    assert not any("novel" in text or "nan" in text for text in messages)


@BACKENDS
def test_classes_may_go_by_other_names_than_in_the_file(
    draw_world: Draw, score: Score, backend: str
) -> None:
    world = draw_world(14)
    own = score(world, backend=backend)["bbox"]
    names = [f"{name} animal" for name in world.classes]
    other = {"thing_classes": names, "novel_classes": [names[1], names[4]]}
    scores = score(world, metadata=other, backend=backend)["bbox"]
    assert scores["AP50-novel"] == own["AP50-novel"]
    assert [scores[f"AP-{name} animal"] for name in world.classes] == pytest.approx(
        [own[f"AP-{name}"] for name in world.classes], nan_ok=True
    )


@BACKENDS
def test_the_class_table_agrees_with_the_scores(
    draw_world: Draw, score: Score, tmp_path: Path, backend: str
) -> None:
    world = draw_world(15)
    scores = score(world, backend=backend, output_dir=str(tmp_path))
    for task in ("bbox", "segm"):
        rows = list(csv.DictReader((tmp_path / f"classes_{task}.csv").open()))
        assert [int(row["category_id"]) for row in rows] == sorted(world.category_ids)
        by_name = {row["class"]: row for row in rows}
        assert by_name["fox"]["AP"] == by_name["fox"]["AR"] == ""
        scored = [row for row in rows if row["AP"]]
        for row in scored:
            assert float(row["AP"]) == pytest.approx(scores[task][f"AP-{row['class']}"], abs=1e-4)
        novel = [float(row["AP50"]) for row in scored if row["split"] == "novel"]
        assert sum(novel) / len(novel) == pytest.approx(scores[task]["AP50-novel"], abs=1e-4)
        for key in ("AP50", "AP75"):
            mean = sum(float(row[key]) for row in scored) / len(scored)
            assert mean == pytest.approx(scores[task][key], abs=1e-4)
        bees = [a for a in world.annotations["annotations"] if a["category_id"] == 3]
        counted = [a for a in bees if not a["iscrowd"]]
        assert int(by_name["bee"]["instances"]) == len(counted)
        assert int(by_name["bee"]["images"]) == len({a["image_id"] for a in counted})


def test_the_protocol_is_named(register: Register, draw_world: Draw) -> None:
    name = register(draw_world(0).annotations)
    protocol = CocoOVEvaluator(name, backend="pycocotools").protocol()
    assert protocol["scorer"] == "pycocotools"
    assert protocol["detections_per_image_and_class"] == 100
    assert (protocol["classes"], protocol["novel_classes"]) == (6, 2)


def test_a_data_set_without_objects_scores_nan(draw_world: Draw, score: Score) -> None:
    world = draw_world(9)
    world.annotations["annotations"] = []
    assert all(map(math.isnan, score(world, tasks=("bbox",))["bbox"].values()))


def test_neither_batches_nor_a_second_call_change_a_number(
    register: Register, draw_world: Draw, run: Score
) -> None:
    world = draw_world(10)
    name = register(world.annotations)
    single, batched = CocoOVEvaluator(name), CocoOVEvaluator(name)
    expected = run(single, world)
    again = single.evaluate()
    for scores in (run(batched, world, batch_size=4), again):
        assert scores["segm"] == pytest.approx(expected["segm"], abs=0, nan_ok=True)


def test_a_class_named_as_a_split_yields_to_the_split(
    draw_world: Draw, score: Score, messages: list[str]
) -> None:
    world = draw_world(12, crowds=False, apart=True).perfect().without("bee")
    names = ["ant", "novel", *world.classes[2:]]
    scores = score(world, metadata={"thing_classes": names, "novel_classes": ["novel", "elk"]})
    assert scores["bbox"]["AP-novel"] == pytest.approx(50)
    assert any("AP-novel is the split's score" in text for text in messages)


def test_a_novel_class_must_be_a_class(draw_world: Draw, score: Score) -> None:
    with pytest.raises(ValueError, match="novel_classes of .* has yak"):
        score(draw_world(0), metadata={"novel_classes": ["bee", "yak"]})
