"""Open-vocabulary COCO scores against pycocotools and against sums done by hand."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator, class_ap, split_mean

Register = Callable[..., str]
Draw = Callable[..., Any]
Run = Callable[..., dict[str, Any]]
BACKENDS = pytest.mark.parametrize("backend", CocoOVEvaluator.backends)


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
        for backend in CocoOVEvaluator.backends
    }
    assert list(scores["hotcoco"]) == ["bbox", "segm"]
    assert 5 < scores["hotcoco"]["segm"]["AP50-novel"] < 95
    for task in ("bbox", "segm"):
        reference = scores["pycocotools"][task]
        assert scores["hotcoco"][task] == pytest.approx(reference, abs=1e-6, nan_ok=True)


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


@pytest.mark.parametrize("novel", [[], None, ["fox"]])
def test_a_split_without_truth_is_nan_with_a_word(
    register: Register,
    draw_world: Draw,
    run: Run,
    messages: list[str],
    novel: list[str] | None,
) -> None:
    world = draw_world(8)
    scores = run(evaluator(register(world.annotations, novel_classes=novel)), world)["bbox"]
    assert math.isnan(scores["AP50-novel"])
    assert math.isnan(scores["AP-novel"])
    assert scores["AP50-base"] == pytest.approx(scores["AP50-all"])
    assert any("no ground truth to score AP50-novel, AP-novel" in text for text in messages)
    assert not any("nan" in text for text in messages)


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
