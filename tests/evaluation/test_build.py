"""The evaluator that fits a data set."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, Instances

from clipself_d2.evaluation import (
    CocoOVEvaluator,
    LVISOVEvaluator,
    RegionClassificationEvaluator,
    build_evaluator,
)
from clipself_d2.parts.label_maps import read_segment_colours, segment_ids

Register = Callable[..., str]
Draw = Callable[..., Any]


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("coco_ov", CocoOVEvaluator),
        ("lvis_ov", LVISOVEvaluator),
        ("lvis", LVISOVEvaluator),
        ("coco", CocoOVEvaluator),
    ],
)
def test_the_metadata_choose_the_detection_evaluator(
    register: Register, draw_world: Draw, tmp_path: Path, kind: str, expected: type
) -> None:
    name = register(draw_world(0, lvis=True).annotations, evaluator_type=kind)
    assert type(build_evaluator(name, str(tmp_path))) is expected


def test_key_points_are_left_to_detectron2(
    register: Register, draw_world: Draw, tmp_path: Path
) -> None:
    name = register(draw_world(0).annotations, evaluator_type="coco", keypoint_names=["nose"])
    assert type(build_evaluator(name, str(tmp_path))) is COCOEvaluator


@pytest.mark.parametrize(("kind", "scorer"), [("coco_ov", "pycocotools"), ("lvis_ov", "lvis")])
def test_the_reference_is_that_of_the_protocol(
    register: Register, draw_world: Draw, run: Callable[..., Any], kind: str, scorer: str
) -> None:
    world = draw_world(1, lvis=kind == "lvis_ov")
    name = register(world.annotations, evaluator_type=kind)
    judge = build_evaluator(name, None, tasks=("segm",), backend="reference")
    assert judge.protocol()["scorer"] == scorer
    assert list(run(judge, world)) == ["segm"]


def test_a_backend_of_the_other_protocol_is_refused(register: Register, draw_world: Draw) -> None:
    name = register(draw_world(0).annotations, evaluator_type="coco_ov")
    with pytest.raises(ValueError, match="backend is 'lvis'"):
        build_evaluator(name, None, backend="lvis")


def panoptic(register: Register, **metadata: Any) -> str:
    """Register two things and two kinds of stuff."""
    usual = {
        "evaluator_type": "region_classification",
        "thing_classes": ["ant", "bee"],
        "stuff_classes": ["sky", "sea"],
        "novel_classes": ["bee"],
    }
    return register({}, **(usual | metadata))


def test_regions_are_classified_among_things_and_stuff(register: Register) -> None:
    judge = build_evaluator(panoptic(register), None, text_embeddings=torch.eye(4))
    assert isinstance(judge, RegionClassificationEvaluator)
    item = {
        "region_classes": torch.tensor([0, 1, 2, 3]),
        "region_is_thing": torch.tensor([True, True, False, False]),
    }
    judge.process([item], [{"roi": torch.eye(4)[[0, 0, 2, 2]]}])
    scores = judge.evaluate()["region"]
    assert scores["roi.thing.base.macc1"] == 100
    assert scores["roi.thing.novel.macc1"] == 0
    assert scores["roi.stuff.macc1"] == 50


@pytest.mark.parametrize("novel", [None, []])
def test_without_novel_classes_there_are_no_splits_of_things(
    register: Register, novel: list[str] | None
) -> None:
    name = panoptic(register, novel_classes=novel)
    judge = build_evaluator(name, None, text_embeddings=torch.eye(4))
    item = {"region_classes": torch.tensor([0]), "region_is_thing": torch.tensor([True])}
    judge.process([item], [{"roi": torch.eye(4)[:1]}])
    assert not any("novel" in key for key in judge.evaluate()["region"])


def test_tasks_have_no_meaning_for_regions(register: Register, messages: list[str]) -> None:
    build_evaluator(panoptic(register), None, text_embeddings=torch.eye(4), tasks=("bbox",))
    assert any("tasks has no meaning" in text for text in messages)


@pytest.mark.parametrize(
    ("embeddings", "metadata", "words"),
    [
        (None, {}, r"needs text_embeddings \(K, D\)"),
        (torch.eye(5), {}, "class_names has 4 entries, but there are 5 text embeddings"),
        (torch.eye(4), {"novel_classes": ["yak"]}, "has yak, not among its classes"),
    ],
)
def test_embeddings_must_fit_the_classes(
    register: Register, embeddings: torch.Tensor | None, metadata: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        build_evaluator(panoptic(register, **metadata), None, text_embeddings=embeddings)


@pytest.mark.parametrize("kind", [None, "cityscapes_instance"])
def test_an_unknown_type_is_refused(register: Register, kind: str | None) -> None:
    name = register({}, evaluator_type=kind)
    with pytest.raises(ValueError, match=f"evaluator_type of {name} is {kind!r}, expected one of"):
        build_evaluator(name, None)


@pytest.mark.parametrize("fixed", [False, True])
def test_fixed_ap_is_for_lvis_and_leaves_coco_alone(
    register: Register, draw_world: Draw, run: Callable[..., Any], fixed: bool
) -> None:
    for kind in ("lvis_ov", "coco_ov"):
        world = draw_world(2, lvis=kind == "lvis_ov")
        name = register(world.annotations, evaluator_type=kind)
        scores = run(build_evaluator(name, None, tasks=("bbox",), fixed_ap=fixed), world)["bbox"]
        assert ("APFixed" in scores) == (fixed and kind == "lvis_ov")


def perfect(record, thing_count: int, num_classes: int) -> dict[str, object]:
    ids = segment_ids(read_segment_colours(record["pan_seg_file_name"]))
    planes, masks, labels = torch.zeros(num_classes, *ids.shape), [], []
    for segment in record["segments_info"]:
        mask = torch.from_numpy(ids == segment["id"])
        planes[segment["category_id"]][mask] = 1
        if segment["category_id"] < thing_count:
            masks.append(mask)
            labels.append(segment["category_id"])
    instances = Instances(
        ids.shape,
        pred_masks=torch.stack(masks),
        scores=torch.ones(len(masks)),
        pred_classes=torch.tensor(labels),
        pred_boxes=Boxes(torch.zeros(len(masks), 4)),
    )
    return {
        "panoptic_seg": (torch.from_numpy(ids), record["segments_info"]),
        "sem_seg": planes,
        "instances": instances,
    }


def test_the_truth_scores_full_marks_everywhere(emoji_data, tmp_path) -> None:
    name = "emoji_ov_panoptic_val"
    metadata = MetadataCatalog.get(name)
    things = len(metadata.thing_classes)
    count = things + len(metadata.stuff_classes)
    evaluator = build_evaluator(name, str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect(record, things, count)])
    scores = evaluator.evaluate()
    assert scores["panoptic_seg"]["PQ"] == scores["sem_seg"]["mIoU"] == 100.0
    assert scores["panoptic_seg"]["PQ_novel"] == 100.0
    # Polygons of the file of instances round the masks' edges.
    assert scores["segm"]["AP50"] == 100.0
    assert 0 < scores["segm"]["AP"] <= 100
    assert (tmp_path / "classes.csv").is_file()
