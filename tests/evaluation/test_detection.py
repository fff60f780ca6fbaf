"""What both protocols share: options, classes, tasks, files, few bytes in memory."""

import copy
import gc
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.lvis_ov import LVISOVEvaluator


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "fast"}, "backend is 'fast', expected one of hotcoco, faster_coco_eval"),
        ({"tasks": ("keypoints",)}, "tasks has keypoints, expected any of bbox, segm"),
    ],
)
def test_unknown_options_are_refused(
    register: Callable[..., str],
    draw_world: Callable[..., Any],
    options: dict[str, Any],
    words: str,
) -> None:
    name = register(draw_world(0).annotations)
    with pytest.raises(ValueError, match=words):
        CocoOVEvaluator(name, **options)


def test_annotations_and_metadata_must_have_the_same_classes(
    register: Callable[..., str], draw_world: Callable[..., Any]
) -> None:
    world = draw_world(0)
    world.annotations["categories"].append({"id": 99, "name": "gnu", "frequency": "r"})
    with pytest.raises(ValueError, match=r"lists 7 categories, but the metadata has 6"):
        CocoOVEvaluator(register(world.annotations))


def test_without_an_id_table_category_ids_are_class_indices(
    register: Callable[..., str], draw_world: Callable[..., Any], run: Callable[..., Any]
) -> None:
    world = draw_world(0, crowds=False).perfect()
    name = register(world.annotations)
    usual = run(CocoOVEvaluator(name, distributed=False), world)
    for entry in world.annotations["annotations"]:
        entry["category_id"] = world.category_ids.index(entry["category_id"])
    for index, category in enumerate(world.annotations["categories"]):
        category["id"] = index
    plain = register(world.annotations, thing_dataset_id_to_contiguous_id=None)
    result = run(CocoOVEvaluator(plain, distributed=False), world)
    assert result["bbox"] == pytest.approx(usual["bbox"], nan_ok=True)
    assert result["bbox"]["AP"] == pytest.approx(100)


def test_boxes_are_never_scored_as_masks(
    register: Callable[..., str],
    draw_world: Callable[..., Any],
    run: Callable[..., Any],
    messages: list[str],
) -> None:
    world = draw_world(1)
    masked = register(world.annotations)
    boxes_only = copy.deepcopy(world.annotations)
    for entry in boxes_only["annotations"]:
        entry["segmentation"] = []
    bare = register(boxes_only)

    assert list(run(CocoOVEvaluator(masked, distributed=False), world.without_masks())) == ["bbox"]
    assert list(run(CocoOVEvaluator(bare, distributed=False), world)) == ["bbox"]
    assert any("objects without masks; only boxes are scored" in text for text in messages)
    both = ("bbox", "segm")
    with pytest.raises(ValueError, match="predicts no masks"):
        run(CocoOVEvaluator(masked, both, distributed=False), world.without_masks())
    with pytest.raises(ValueError, match="objects without masks"):
        run(CocoOVEvaluator(bare, both, distributed=False), world)
    world.outputs[0]["instances"].remove("pred_masks")
    with pytest.raises(ValueError, match="predicts no masks"):
        run(CocoOVEvaluator(masked, distributed=False), world)


def test_the_size_of_a_mask_is_that_of_the_mask_not_of_its_box(
    register: Callable[..., str], draw_world: Callable[..., Any], run: Callable[..., Any]
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
    scores = run(CocoOVEvaluator(register(world.annotations), distributed=False), world)
    assert scores["bbox"]["APs"] == pytest.approx(100)
    assert scores["segm"]["APs"] < 60


def test_predictions_are_written_with_category_ids(
    register: Callable[..., str],
    draw_world: Callable[..., Any],
    run: Callable[..., Any],
    tmp_path: Path,
) -> None:
    world = draw_world(2)
    evaluator = CocoOVEvaluator(
        register(world.annotations), distributed=False, output_dir=str(tmp_path / "out")
    )
    run(evaluator, world)
    written = json.loads((tmp_path / "out" / "coco_instances_results.json").read_text("ascii"))
    expected = [
        world.category_ids[label]
        for output in world.outputs
        for label in output["instances"].pred_classes.tolist()
    ]
    assert [result["category_id"] for result in written] == expected


def test_no_image_gives_nothing_and_images_without_objects_score_0(
    register: Callable[..., str],
    draw_world: Callable[..., Any],
    run: Callable[..., Any],
    messages: list[str],
) -> None:
    world = draw_world(2)
    evaluator = CocoOVEvaluator(register(world.annotations))
    evaluator.reset()
    assert evaluator.evaluate() == {}
    assert "nothing to evaluate" in messages[-1]
    assert run(evaluator, world.emptied())["bbox"]["AP"] == 0


def test_an_image_predicted_twice_counts_once(
    register: Callable[..., str], draw_world: Callable[..., Any], run: Callable[..., Any]
) -> None:
    world = draw_world(3)
    evaluator = CocoOVEvaluator(register(world.annotations))
    once = run(evaluator, world)
    world.inputs += world.inputs[:2]
    world.outputs += world.outputs[:2]
    assert run(evaluator, world)["bbox"] == pytest.approx(once["bbox"], abs=0, nan_ok=True)


def test_proposals_are_scored_by_their_recall(
    register: Callable[..., str], draw_world: Callable[..., Any], tmp_path: Path
) -> None:
    world = draw_world(4, crowds=False)
    evaluator = CocoOVEvaluator(register(world.annotations), output_dir=str(tmp_path / "out"))
    evaluator.reset()
    for item in world.inputs:
        boxes = [
            a["bbox"] for a in world.annotations["annotations"] if a["image_id"] == item["image_id"]
        ]
        corners = torch.tensor(boxes, dtype=torch.float64)
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


def test_memory_does_not_hold_the_predictions(
    register: Callable[..., str], draw_world: Callable[..., Any]
) -> None:
    measured = []
    for num_images in (5, 40):
        world = draw_world(5, lvis=True, num_images=num_images).without_masks()
        measured.append(_peak_and_size(world, register(world.annotations)))
    (few_peak, few_written), (peak, written) = measured
    assert written - few_written > 500_000
    # Results as Python objects take three times the bytes of their file and more.
    assert peak - few_peak < 0.8 * (written - few_written)


def test_files_go_with_the_evaluator(
    register: Callable[..., str],
    draw_world: Callable[..., Any],
    run: Callable[..., Any],
    tmp_path: Path,
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
