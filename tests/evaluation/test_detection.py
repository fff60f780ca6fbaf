"""Careful reading of annotation files and predictions."""

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.detection import dataset_results, read_annotation_file, warn_undefined

REQUIRED = {"images": ("id",), "annotations": ("id", "area"), "categories": ("id",)}
GOOD = {
    "images": [{"id": 4}],
    "annotations": [{"id": 1, "area": 2.0}, {"id": 2, "area": 3.0}],
    "categories": [{"id": 9}],
}
RESULT = {"image_id": 4, "category_id": 1, "score": 0.5, "bbox": [0.0, 0.0, 2.0, 2.0]}


def write(folder: Path, content: object) -> str:
    path = folder / "truth.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="ascii")
    return str(path)


def test_a_sound_file_is_returned(tmp_path: Path) -> None:
    assert read_annotation_file(write(tmp_path, GOOD), REQUIRED) == GOOD


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json does not exist.*DETECTRON2"):
        read_annotation_file(str(tmp_path / "nowhere.json"), REQUIRED)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("version https://git-lfs", "is not JSON"),
        ("", "is not JSON"),
        ([], "holds a list, expected an object"),
        ({**GOOD, "annotations": None}, "lacks the list 'annotations'"),
        ({"images": [], "categories": []}, "lacks the list 'annotations'"),
        ({**GOOD, "annotations": [{"id": 1}, {"id": 2, "area": 1}]}, "'area' in 1 of its 2 anno"),
        ({**GOOD, "annotations": [{"id": 0, "area": 1}]}, "number the annotations from 1"),
        ({**GOOD, "annotations": [{"id": 5, "area": 1}] * 2}, "ids that repeat"),
    ],
)
def test_an_unsound_file_is_refused_by_name(tmp_path: Path, content: object, words: str) -> None:
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=words) as caught:
        read_annotation_file(path, REQUIRED)
    assert path in str(caught.value)


def test_class_indices_become_category_ids_in_a_copy() -> None:
    predictions = [{"image_id": 4, "instances": [dict(RESULT)]}, {"image_id": 5, "instances": []}]
    before = copy.deepcopy(predictions)
    assert dataset_results(predictions, [7, 3], {4, 5}) == [{**RESULT, "category_id": 3}]
    assert predictions == before


@pytest.mark.parametrize(
    ("change", "image_ids", "words"),
    [
        ({"category_id": 2}, {4}, "class index 2, expected 0 to 1"),
        ({"category_id": -1}, {4}, "class index -1"),
        ({}, {8}, "image_id 4, which the annotation file does not list"),
        ({"score": math.nan}, {4}, "not finite"),
        ({"bbox": [0.0, 0.0, math.inf, 1.0]}, {4}, "not finite"),
    ],
)
def test_impossible_predictions_are_refused(
    change: dict[str, Any], image_ids: set[int], words: str
) -> None:
    predictions = [{"image_id": 4, "instances": [RESULT | change]}]
    with pytest.raises(ValueError, match=words):
        dataset_results(predictions, [7, 3], image_ids)


def test_undefined_scores_are_put_into_words(messages: list[str]) -> None:
    warn_undefined("bbox", {"AP": 1.0, "APl": math.nan, "APr": math.nan})
    warn_undefined("segm", {"AP": 0.0})
    assert len(messages) == 1
    assert "bbox: no ground truth to score APl, APr" in messages[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"backend": "fast"}, "backend is 'fast', expected one of hotcoco, pycocotools"),
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
    assert (tmp_path / "out" / "instances_predictions.pth").is_file()
