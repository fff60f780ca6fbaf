"""Scores of faulty annotation files: all scorers read the same, and mends change no number."""

import copy
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from clipself_d2.evaluation.coco_ov import CocoOVEvaluator
from clipself_d2.evaluation.lvis_ov import LVISOVEvaluator

Draw = Callable[..., Any]
Score = Callable[..., dict[str, Any]]
Content = dict[str, list[dict[str, Any]]]
KINDS = pytest.mark.parametrize("kind", [CocoOVEvaluator, LVISOVEvaluator])


def texts_as_ids(content: Content) -> None:
    for image in content["images"]:
        image["id"] = f"picture {image['id']}"
    for row in content["annotations"]:
        row |= {"image_id": f"picture {row['image_id']}", "id": f"object {row['id']}"}


def ids_from_0(content: Content) -> None:
    for image in content["images"]:
        image["id"] -= 101
    for row in content["annotations"]:
        row |= {"image_id": row["image_id"] - 101, "id": row["id"] - 1}


def negative_ids(content: Content) -> None:
    for image in content["images"]:
        image["id"] = -image["id"]
    for row in content["annotations"]:
        row |= {"image_id": -row["image_id"], "id": -row["id"]}


def no_area(content: Content) -> None:
    for row in content["annotations"]:
        del row["area"]


def no_iscrowd(content: Content) -> None:
    for row in content["annotations"]:
        row["iscrowd"] = None
    del content["annotations"][0]["iscrowd"]


def all_at_once(content: Content) -> None:
    for change in (texts_as_ids, no_area, no_iscrowd):
        change(content)


def agreed(score: Score, kind: Any, world: Any) -> dict[str, Any]:
    """The scores of hotcoco, which those of the other scorers equal."""
    fast, *others = (
        score(world, kind, backend=backend)
        for backend in kind.backends
        if backend != "faster_coco_eval" or importlib.util.find_spec(backend)
    )
    assert set(fast) == {"bbox", "segm"}
    for other in others:
        for task in fast:
            assert fast[task] == pytest.approx(other[task], abs=1e-9, nan_ok=True)
    return fast


@KINDS
@pytest.mark.parametrize(
    "change", [texts_as_ids, ids_from_0, negative_ids, no_area, no_iscrowd, all_at_once]
)
def test_scores_are_those_of_the_sound_file_in_all_scorers(
    draw_world: Draw, score: Score, kind: Any, change: Callable[[Content], None]
) -> None:
    world = draw_world(2, num_images=3, crowds=False, lvis=True)
    expected = agreed(score, kind, world)
    assert 2 < expected["segm"]["AP"] < 95
    changed = copy.deepcopy(world)
    change(changed.annotations)
    for item, image in zip(changed.inputs, changed.annotations["images"], strict=True):
        item["image_id"] = image["id"]
    found = agreed(score, kind, changed)
    for task in expected:
        assert found[task] == pytest.approx(expected[task], abs=1e-9, nan_ok=True)


@KINDS
def test_scorers_agree_on_objects_that_are_none(draw_world: Draw, score: Score, kind: Any) -> None:
    world = draw_world(3, num_images=3, crowds=False, lvis=True)
    expected = agreed(score, kind, world)
    rows = world.annotations["annotations"]
    faults: list[dict[str, Any]] = [
        {"bbox": [5, 5, -20, 20]},
        {"bbox": [5, 5, 0, 20], "area": 0.0},
        {"segmentation": [[1, 1, 9, 9, 5, 5]]},
        {"segmentation": [[1, 1, 9, 9]], "area": None},
    ]
    new = [{**rows[n], "id": len(rows) + 1 + n, **fault} for n, fault in enumerate(faults)]
    left_out = copy.deepcopy(world)
    left_out.annotations["annotations"] = [*rows, new[0]]
    found = agreed(score, kind, left_out)
    for task in expected:
        assert found[task] == pytest.approx(expected[task], abs=1e-9, nan_ok=True)
    world.annotations["annotations"] = [*rows, *new]
    assert agreed(score, kind, world)["segm"] != expected["segm"]
