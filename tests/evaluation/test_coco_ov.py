"""Open-vocabulary COCO scores against pycocotools and against sums done by hand."""

import csv
import importlib.util
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.lvis_ov import LVISOVEvaluator

Register = Callable[..., str]
Draw = Callable[..., Any]
Run = Callable[..., dict[str, Any]]
BACKENDS = pytest.mark.parametrize("backend", ["hotcoco", "pycocotools"])


def evaluator(name: str, **options: Any) -> CocoOVEvaluator:
    return CocoOVEvaluator(name, distributed=False, **options)


@pytest.mark.parametrize("max_dets", [None, 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_hotcoco_and_pycocotools_agree(
    register: Register, draw_world: Draw, run: Run, seed: int, max_dets: int | None
) -> None:
    world = draw_world(seed)
    name = register(world.annotations)
    scores = {
        backend: run(evaluator(name, backend=backend, max_dets_per_image=max_dets), world)
        for backend in ("hotcoco", "pycocotools")
    }
    assert list(scores["hotcoco"]) == ["bbox", "segm"]
    assert 5 < scores["hotcoco"]["segm"]["AP50-novel"] < 95
    for task in ("bbox", "segm"):
        reference = scores["pycocotools"][task]
        assert scores["hotcoco"][task] == pytest.approx(reference, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize("max_dets", [None, 3])
def test_faster_coco_eval_agrees(
    register: Register, draw_world: Draw, run: Run, max_dets: int | None
) -> None:
    pytest.importorskip("faster_coco_eval")
    world = draw_world(0)
    name = register(world.annotations)
    fast, reference = (
        run(evaluator(name, backend=backend, max_dets_per_image=max_dets), world)
        for backend in ("faster_coco_eval", "pycocotools")
    )
    for task in ("bbox", "segm"):
        assert fast[task] == pytest.approx(reference[task], abs=1e-12, nan_ok=True)


@BACKENDS
def test_perfect_predictions_score_100(
    register: Register, draw_world: Draw, run: Run, backend: str
) -> None:
    world = draw_world(3, crowds=False).perfect()
    scores = run(evaluator(register(world.annotations), backend=backend), world)
    for task in ("bbox", "segm"):
        defined = {key: score for key, score in scores[task].items() if key != "AP-fox"}
        assert len(defined) == 6 + 5 + 5
        assert defined == pytest.approx(dict.fromkeys(defined, 100.0))


@BACKENDS
def test_right_places_under_wrong_names_score_0(
    register: Register, draw_world: Draw, run: Run, backend: str
) -> None:
    world = draw_world(4, crowds=False, apart=True).perfect(shift=1)
    scores = run(evaluator(register(world.annotations), backend=backend), world)
    for key in ("AP", "AP50", "AP50-base", "AP50-novel", "AP50-all", "AP-base", "AP-novel"):
        assert scores["bbox"][key] == 0, key


@BACKENDS
def test_splits_are_means_over_their_classes(
    register: Register, draw_world: Draw, run: Run, backend: str
) -> None:
    # Of ant, bee, cat, dog and elk (fox has no object), bee and elk are novel; bee is never found.
    world = draw_world(5, crowds=False, apart=True).perfect().without("bee")
    scores = run(evaluator(register(world.annotations), backend=backend), world)["segm"]
    expected = {"AP50-base": 100, "AP50-novel": 50, "AP50-all": 80, "AP-base": 100, "AP-novel": 50}
    assert {key: scores[key] for key in expected} == pytest.approx(expected)
    # Category ids are not in the order of the classes; names must follow their ids.
    assert scores["AP-bee"] == 0
    for name in ("ant", "cat", "dog", "elk"):
        assert scores[f"AP-{name}"] == pytest.approx(100)
    assert math.isnan(scores["AP-fox"])


def test_the_mean_over_all_classes_is_cocos_own_ap50(
    register: Register, draw_world: Draw, run: Run
) -> None:
    world = draw_world(6)
    scores = run(evaluator(register(world.annotations)), world)["bbox"]
    assert scores["AP50-all"] == pytest.approx(scores["AP50"])
    weighted = (3 * scores["AP-base"] + 2 * scores["AP-novel"]) / 5
    assert weighted == pytest.approx(scores["AP"])
    bees = (scores["AP-bee"] + scores["AP-elk"]) / 2
    assert scores["AP-novel"] == pytest.approx(bees)


@BACKENDS
def test_no_predictions_score_0(
    register: Register, draw_world: Draw, run: Run, backend: str
) -> None:
    world = draw_world(7, crowds=False).emptied()
    name = register(world.annotations)
    scores = run(evaluator(name, backend=backend, tasks=("bbox", "segm")), world)
    for task in ("bbox", "segm"):
        defined = {key: score for key, score in scores[task].items() if key != "AP-fox"}
        assert set(defined.values()) == {0.0}
        assert math.isnan(scores[task]["AP-fox"])


def test_a_split_without_truth_is_nan_with_a_word(
    register: Register, draw_world: Draw, run: Run, messages: list[str]
) -> None:
    world = draw_world(8)
    scores = run(evaluator(register(world.annotations, novel_classes=["fox"])), world)["bbox"]
    assert math.isnan(scores["AP50-novel"])
    assert math.isnan(scores["AP-novel"])
    assert scores["AP50-base"] == pytest.approx(scores["AP50-all"])
    assert any("no ground truth to score AP50-novel, AP-novel" in text for text in messages)
    assert not any("nan" in text for text in messages)


@pytest.mark.parametrize("novel", [[], None])
def test_without_novel_classes_there_are_no_splits(
    register: Register, draw_world: Draw, run: Run, messages: list[str], novel: list[str] | None
) -> None:
    world = draw_world(8)
    scores = run(evaluator(register(world.annotations, novel_classes=novel)), world)["bbox"]
    assert not any("novel" in key or "base" in key for key in scores)
    assert scores["AP50-all"] == pytest.approx(scores["AP50"])
    assert not any("novel" in text or "nan" in text for text in messages)


@BACKENDS
def test_classes_may_go_by_other_names_than_in_the_file(
    register: Register, draw_world: Draw, run: Run, backend: str
) -> None:
    world = draw_world(14)
    own = run(evaluator(register(world.annotations), backend=backend), world)["bbox"]
    names = [f"{name} animal" for name in world.classes]
    other = register(world.annotations, thing_classes=names, novel_classes=[names[1], names[4]])
    scores = run(evaluator(other, backend=backend), world)["bbox"]
    assert scores["AP50-novel"] == own["AP50-novel"]
    assert [scores[f"AP-{name} animal"] for name in world.classes] == pytest.approx(
        [own[f"AP-{name}"] for name in world.classes], nan_ok=True
    )


@BACKENDS
def test_the_class_table_agrees_with_the_scores(
    register: Register, draw_world: Draw, run: Run, tmp_path: Path, backend: str
) -> None:
    world = draw_world(15)
    scores = run(
        evaluator(register(world.annotations), backend=backend, output_dir=str(tmp_path)), world
    )
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
        fifty, seventy_five = (
            sum(float(row[key]) for row in scored) / len(scored) for key in ("AP50", "AP75")
        )
        assert fifty == pytest.approx(scores[task]["AP50"], abs=1e-4)
        assert seventy_five == pytest.approx(scores[task]["AP75"], abs=1e-4)
        bees = [a for a in world.annotations["annotations"] if a["category_id"] == 3]
        counted = [a for a in bees if not a["iscrowd"]]
        assert int(by_name["bee"]["instances"]) == len(counted)
        assert int(by_name["bee"]["images"]) == len({a["image_id"] for a in counted})


def test_the_protocol_is_named(register: Register, draw_world: Draw) -> None:
    protocol = evaluator(register(draw_world(0).annotations), backend="pycocotools").protocol()
    assert protocol["scorer"] == "pycocotools"
    assert protocol["detections_per_image_and_class"] == 100
    assert (protocol["classes"], protocol["novel_classes"]) == (6, 2)


def test_a_data_set_without_objects_scores_nan(
    register: Register, draw_world: Draw, run: Run
) -> None:
    world = draw_world(9)
    world.annotations["annotations"] = []
    scores = run(evaluator(register(world.annotations), tasks=("bbox",)), world)["bbox"]
    assert all(math.isnan(score) for score in scores.values())


def test_neither_batches_nor_a_second_call_change_a_number(
    register: Register, draw_world: Draw, run: Run
) -> None:
    world = draw_world(10)
    name = register(world.annotations)
    single, batched = evaluator(name), evaluator(name)
    expected = run(single, world)
    again = single.evaluate()
    for scores in (run(batched, world, batch_size=4), again):
        assert scores["segm"] == pytest.approx(expected["segm"], abs=0, nan_ok=True)


@BACKENDS
def test_a_choice_of_images_leaves_the_others_out(
    register: Register, draw_world: Draw, run: Run, backend: str
) -> None:
    world = draw_world(11, crowds=False, num_images=4)
    world.outputs[:2] = world.perfect().outputs[:2]
    judge = evaluator(register(world.annotations), backend=backend)
    assert run(judge, world)["bbox"]["AP50-all"] < 99
    assert judge.evaluate(img_ids=[101, 102])["bbox"]["AP50-all"] == pytest.approx(100)


def test_a_class_named_as_a_split_yields_to_the_split(
    register: Register, draw_world: Draw, run: Run, messages: list[str]
) -> None:
    world = draw_world(12, crowds=False, apart=True).perfect().without("bee")
    names = ["ant", "novel", *world.classes[2:]]
    name = register(world.annotations, thing_classes=names, novel_classes=["novel", "elk"])
    assert run(evaluator(name), world)["bbox"]["AP-novel"] == pytest.approx(50)
    assert any("AP-novel is the split's score" in text for text in messages)


def test_a_novel_class_must_be_a_class(register: Register, draw_world: Draw) -> None:
    name = register(draw_world(0).annotations, novel_classes=["bee", "yak"])
    with pytest.raises(ValueError, match="novel_classes of .* has yak"):
        evaluator(name)


@pytest.mark.parametrize("kind", [CocoOVEvaluator, LVISOVEvaluator])
@pytest.mark.parametrize("emptied", [False, True])
def test_without_hotcoco_the_reference_gives_the_same_scores(
    register: Register,
    draw_world: Draw,
    run: Run,
    kind: type,
    emptied: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = draw_world(1, lvis=kind is LVISOVEvaluator)
    if emptied:
        for output in world.outputs:
            output["instances"] = output["instances"][:0]
    name = register(world.annotations)
    scores = run(kind(name, distributed=False), world)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level("WARNING"):
        without = run(kind(name, distributed=False), world)
    assert f"{kind.backends[-1]} scores in its place" in caplog.text
    for task, figures in scores.items():
        assert without[task] == pytest.approx(figures, abs=1e-6, nan_ok=True)
