"""What both protocols share: scores, options, classes, tasks, files, few bytes in memory."""

import copy
import gc
import importlib.util
import json
import math
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.lvis_ov import LVISOVEvaluator

Register = Callable[..., str]
Draw = Callable[..., Any]
Score = Callable[..., dict[str, Any]]
KINDS = (CocoOVEvaluator, LVISOVEvaluator)
# The first scorer of a protocol, and the reference.
JUDGES = pytest.mark.parametrize(
    ("kind", "backend"), [(kind, kind.backends[end]) for kind in KINDS for end in (0, -1)]
)


@pytest.mark.parametrize("max_dets", [None, 3, 9])
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize(("kind", "split"), [(KINDS[0], "AP50-novel"), (KINDS[1], "APr")])
def test_hotcoco_and_the_reference_agree(
    draw_world: Draw, score: Score, kind: Any, split: str, seed: int, max_dets: int | None
) -> None:
    world = draw_world(seed, lvis=kind is LVISOVEvaluator)
    fast, reference = (
        score(world, kind, backend=kind.backends[end], max_dets_per_image=max_dets)
        for end in (0, -1)
    )
    assert list(fast) == ["bbox", "segm"]
    assert 1 < fast["segm"][split] < 95
    for task, scores in fast.items():
        assert scores == pytest.approx(reference[task], abs=1e-6, nan_ok=True)


@JUDGES
def test_perfect_predictions_score_100(
    draw_world: Draw, score: Score, kind: Any, backend: str
) -> None:
    world = draw_world(4, lvis=kind is LVISOVEvaluator, crowds=False, num_images=8).perfect()
    found = score(world, kind, backend=backend)
    assert list(found) == ["bbox", "segm"]
    for scores in found.values():
        # There is no fox.
        defined = {key: value for key, value in scores.items() if key != "AP-fox"}
        assert len(defined) == (9 if kind is LVISOVEvaluator else 6 + 5 + 5)
        assert defined == pytest.approx(dict.fromkeys(defined, 100.0))


@JUDGES
@pytest.mark.parametrize("is_blind", [True, False])
def test_no_predictions_and_right_places_under_wrong_names_score_0(
    draw_world: Draw, score: Score, kind: Any, backend: str, is_blind: bool
) -> None:
    world = draw_world(5, lvis=kind is LVISOVEvaluator, crowds=False, apart=True)
    world = world.emptied() if is_blind else world.perfect(shift=1)
    found = score(world, kind, backend=backend, tasks=("bbox", "segm"))
    for scores in found.values():
        defined = {key: value for key, value in scores.items() if not math.isnan(value)}
        assert {"AP", "AP50", "AP75", "APs"} <= defined.keys()
        assert set(defined.values()) == {0.0}


@JUDGES
def test_a_choice_of_images_leaves_the_others_out(
    register: Register, draw_world: Draw, run: Score, kind: Any, backend: str
) -> None:
    world = draw_world(10, lvis=kind is LVISOVEvaluator, crowds=False, num_images=4)
    world.outputs[:2] = world.perfect().outputs[:2]
    judge = kind(register(world.annotations), distributed=False, backend=backend)
    assert run(judge, world)["bbox"]["AP50"] < 99
    assert judge.evaluate(img_ids=[101, 102])["bbox"]["AP50"] == pytest.approx(100)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("is_blind", [False, True])
def test_without_hotcoco_the_reference_gives_the_same_scores(
    draw_world: Draw,
    score: Score,
    kind: Any,
    is_blind: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    world = draw_world(1, lvis=kind is LVISOVEvaluator)
    world = world.emptied() if is_blind else world
    scores = score(world, kind)
    monkeypatch.setitem(sys.modules, "hotcoco", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with caplog.at_level("WARNING"):
        without = score(world, kind)
    assert f"{kind.backends[-1]} scores in its place" in caplog.text
    for task, figures in scores.items():
        assert without[task] == pytest.approx(figures, abs=1e-6, nan_ok=True)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "fast"}, "backend is 'fast', expected one of hotcoco, faster_coco_eval"),
        ({"tasks": ("keypoints",)}, "tasks has keypoints, expected any of bbox, segm"),
    ],
)
def test_unknown_options_are_refused(
    draw_world: Draw, score: Score, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        score(draw_world(0), **options)


def test_annotations_and_metadata_must_have_the_same_classes(
    register: Register, draw_world: Draw
) -> None:
    world = draw_world(0)
    world.annotations["categories"].append({"id": 99, "name": "gnu", "frequency": "r"})
    with pytest.raises(ValueError, match=r"lists 7 categories, but the metadata has 6"):
        CocoOVEvaluator(register(world.annotations))


def test_without_an_id_table_category_ids_are_class_indices(draw_world: Draw, score: Score) -> None:
    world = draw_world(0, crowds=False).perfect()
    usual = score(world)
    for entry in world.annotations["annotations"]:
        entry["category_id"] = world.category_ids.index(entry["category_id"])
    for index, category in enumerate(world.annotations["categories"]):
        category["id"] = index
    result = score(world, metadata={"thing_dataset_id_to_contiguous_id": None})
    assert result["bbox"] == pytest.approx(usual["bbox"], nan_ok=True)
    assert result["bbox"]["AP"] == pytest.approx(100)


def test_boxes_are_never_scored_as_masks(
    draw_world: Draw, score: Score, messages: list[str]
) -> None:
    world = draw_world(1)
    bare = copy.deepcopy(world)
    for entry in bare.annotations["annotations"]:
        entry["segmentation"] = []

    assert list(score(world.without_masks())) == ["bbox"]
    assert list(score(bare)) == ["bbox"]
    assert any("objects without masks; only boxes are scored" in text for text in messages)
    both = ("bbox", "segm")
    with pytest.raises(ValueError, match="predicts no masks"):
        score(world.without_masks(), tasks=both)
    with pytest.raises(ValueError, match="objects without masks"):
        score(bare, tasks=both)
    world.outputs[0]["instances"].remove("pred_masks")
    with pytest.raises(ValueError, match="predicts no masks"):
        score(world)


def test_the_size_of_a_mask_is_that_of_the_mask_not_of_its_box(
    draw_world: Draw, score: Score
) -> None:
    # Only small objects; a false mask, the surest of all, is small too, in a box that is large.
    world = draw_world(3, crowds=False, apart=True).perfect()
    for output in world.outputs:
        found = output["instances"]
        false = copy.deepcopy(found)
        false.scores[:] = 0.99
        false.pred_masks[:] = False
        false.pred_masks[:, ::20, 0] = True
        false.pred_boxes.tensor[:] = false.pred_boxes.tensor.new_tensor([0, 0, 120, 120])
        output["instances"] = type(found).cat([false, found])
    scores = score(world)
    assert scores["bbox"]["APs"] == pytest.approx(100)
    assert scores["segm"]["APs"] < 60


def test_predictions_are_written_with_category_ids(
    draw_world: Draw, score: Score, tmp_path: Path
) -> None:
    world = draw_world(2)
    score(world, output_dir=str(tmp_path / "out"))
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text("ascii"))
    labels = [label for o in world.outputs for label in o["instances"].pred_classes.tolist()]
    assert [row["category_id"] for row in written] == [world.category_ids[i] for i in labels]


def test_no_image_gives_nothing_and_images_without_objects_score_0(
    register: Register, draw_world: Draw, run: Score, messages: list[str]
) -> None:
    world = draw_world(2)
    evaluator = CocoOVEvaluator(register(world.annotations))
    evaluator.reset()
    assert evaluator.evaluate() == {}
    assert "nothing to evaluate" in messages[-1]
    assert run(evaluator, world.emptied())["bbox"]["AP"] == 0


def test_an_image_predicted_twice_counts_once(draw_world: Draw, score: Score) -> None:
    world = draw_world(3)
    once = score(world)
    world.inputs += world.inputs[:2]
    world.outputs += world.outputs[:2]
    assert score(world)["bbox"] == pytest.approx(once["bbox"], abs=0, nan_ok=True)


def test_proposals_are_scored_by_their_recall(
    register: Register, draw_world: Draw, tmp_path: Path
) -> None:
    world = draw_world(4, crowds=False)
    evaluator = CocoOVEvaluator(register(world.annotations), output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for item in world.inputs:
        own = [a for a in world.annotations["annotations"] if a["image_id"] == item["image_id"]]
        corners = torch.tensor([a["bbox"] for a in own], dtype=torch.float64)
        corners[:, 2:] += corners[:, :2]
        proposals = Instances((120, 160))
        proposals.proposal_boxes = Boxes(corners[:-1])
        proposals.objectness_logits = torch.arange(len(corners) - 1.0)
        evaluator.process([item], [{"proposals": proposals}])
    scores = evaluator.evaluate()
    assert list(scores) == ["box_proposals"]
    assert scores["box_proposals"]["AR@100"] == pytest.approx(100 * 6 / 7)


def _peak_and_size(world: Any, name: str) -> tuple[int, int]:
    """Return the peak of Python's memory and the bytes of the predictions on disk."""
    evaluator = LVISOVEvaluator(name, distributed=False, fixed_ap=True)
    evaluator.reset()
    many = [type(o["instances"]).cat([o["instances"]] * 5) for o in world.outputs]
    tracemalloc.start()
    for item, found in zip(world.inputs, many, strict=True):
        evaluator.process([item], [{"instances": found}])
    written = sum(path.stat().st_size for path in evaluator._predictions.folder.iterdir())
    assert evaluator.evaluate()["bbox"]["AP"] > 0
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, written


def test_memory_does_not_hold_the_predictions(register: Register, draw_world: Draw) -> None:
    measured = []
    for num_images in (5, 40):
        world = draw_world(5, lvis=True, num_images=num_images).without_masks()
        measured.append(_peak_and_size(world, register(world.annotations)))
    (few_peak, few_written), (peak, written) = measured
    assert written - few_written > 500_000
    # Results as Python objects take three times the bytes of their file and more.
    assert peak - few_peak < 0.8 * (written - few_written)


def test_files_go_with_the_evaluator(
    register: Register, draw_world: Draw, run: Score, tmp_path: Path
) -> None:
    world = draw_world(6)
    evaluator = CocoOVEvaluator(register(world.annotations), output_dir=str(tmp_path / "out"))
    run(evaluator, world)
    run(evaluator, world)
    assert len(list((tmp_path / "out").glob(".predictions_*"))) == 1
    del evaluator
    gc.collect()
    left = {path.name for path in (tmp_path / "out").iterdir()}
    assert left == {"coco_instances_results.json", "classes_bbox.csv", "classes_segm.csv"}
