"""LVIS scores against the lvis package and against sums done by hand."""

import copy
import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipself_d2.evaluation import lvis_ov
from clipself_d2.evaluation.lvis_ov import METRICS, LVISOVEvaluator, numpy_float_alias

Register = Callable[..., str]
Draw = Callable[..., Any]
Score = Callable[..., dict[str, Any]]
BACKENDS = pytest.mark.parametrize("backend", LVISOVEvaluator.backends)


def both(score: Score, world: Any, **options: Any) -> dict[str, Any]:
    """Return hotcoco's scores after comparing them with those of lvis."""
    fast, reference = (
        score(world, LVISOVEvaluator, backend=backend, **options)
        for backend in LVISOVEvaluator.backends
    )
    assert list(fast) == list(reference)
    fixed = tuple(f"{metric}Fixed" for metric in METRICS) if options.get("fixed_ap") else ()
    for task, scores in fast.items():
        assert tuple(scores) == METRICS + fixed
        assert scores == pytest.approx(reference[task], abs=1e-6, nan_ok=True)
    return fast


def test_both_leave_out_objects_and_results_without_area(draw_world: Draw, score: Score) -> None:
    world = draw_world(3, lvis=True)
    plain = both(score, world)
    for output in world.outputs:
        found = output["instances"]
        best = int(found.scores.argmax())
        found.pred_masks[best] = False
        found.pred_boxes.tensor[best] = 0
    empty_results = both(score, world, max_dets_per_image=20)
    assert empty_results["segm"]["AP"] != plain["segm"]["AP"]
    world.annotations["annotations"][0]["area"] = 0
    both(score, world)


@BACKENDS
def test_frequency_groups_are_means_over_their_classes(
    draw_world: Draw, score: Score, backend: str
) -> None:
    # bee and elk are rare, ant common (as fox, which has no object), cat and dog frequent.
    world = draw_world(6, lvis=True, apart=True).perfect().without("bee").without("ant")
    scores = score(world, LVISOVEvaluator, backend=backend)["bbox"]
    expected = {"APr": 50, "APc": 0, "APf": 100, "AP": 60}
    assert {key: scores[key] for key in expected} == pytest.approx(expected)


@BACKENDS
def test_only_images_annotated_for_a_class_can_hold_its_false_positives(
    draw_world: Draw, score: Score, backend: str
) -> None:
    world = draw_world(7, lvis=True, num_images=2, apart=True)
    annotations = world.annotations
    bee, elk = (world.category_ids[world.classes.index(name)] for name in ("bee", "elk"))
    annotations["annotations"] = [a for a in annotations["annotations"] if a["image_id"] == 101]
    annotations["annotations"][0]["category_id"] = bee
    world = world.perfect()
    # A false bee in image 102, sure of itself.
    false = copy.deepcopy(world.outputs[0]["instances"][:1])
    false.scores[:] = 0.99
    world.outputs[1] = {"instances": false}

    scores = {}
    for case, negative in (("unknown", [elk]), ("absent", [bee])):
        annotations["images"][1]["neg_category_ids"] = negative
        scores[case] = score(world, LVISOVEvaluator, backend=backend)["bbox"]["AP50"]
    assert scores["unknown"] == pytest.approx(100)
    assert scores["absent"] < 95


@BACKENDS
def test_a_frequency_without_truth_is_nan_with_a_word(
    draw_world: Draw, score: Score, messages: list[str], backend: str
) -> None:
    world = draw_world(9, lvis=True)
    for category in world.annotations["categories"]:
        category["frequency"] = "f"
    scores = score(world, LVISOVEvaluator, backend=backend)["bbox"]
    assert math.isnan(scores["APr"])
    assert scores["APf"] == pytest.approx(scores["AP"])
    assert any("no ground truth to score" in text and "APr, APc" in text for text in messages)


def test_300_detections_of_an_image_count(
    draw_world: Draw, score: Score, messages: list[str]
) -> None:
    world = draw_world(11, lvis=True, num_images=2).perfect()
    for output in world.outputs:
        found = output["instances"]
        # 297 surer results of other places push all but three of the right ones out.
        noise = copy.deepcopy(found[[0] * 297])
        noise.pred_boxes.tensor[:] = noise.pred_boxes.tensor.new_tensor([1.0, 1.0, 2.0, 2.0])
        noise.scores[:] = 0.95
        output["instances"] = type(found).cat([noise, found])
    scores = both(score, world.without_masks())
    assert 5 < scores["bbox"]["AP50"] < 80
    assert any("300 detections an image" in text for text in messages)


@pytest.mark.parametrize("limit", [3, 10, 10_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_agree_on_fixed_ap(
    draw_world: Draw, score: Score, monkeypatch: pytest.MonkeyPatch, seed: int, limit: int
) -> None:
    monkeypatch.setattr(lvis_ov, "FIXED_DETS_PER_CLASS", limit)
    world = draw_world(seed, lvis=True)
    scores = both(score, world, fixed_ap=True)
    for task in ("bbox", "segm"):
        fixed = {key: scores[task][f"{key}Fixed"] for key in METRICS}
        standard = {key: scores[task][key] for key in METRICS}
        same = fixed == pytest.approx(standard, nan_ok=True)
        # No image has 300 detections here: the limits differ only where that of classes is low.
        assert same == (limit == 10_000)


def test_fixed_ap_is_lvis_itself_on_the_best_of_each_class(
    draw_world: Draw, score: Score, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lvis import LVIS, LVISEval, LVISResults

    monkeypatch.setattr(lvis_ov, "FIXED_DETS_PER_CLASS", 6)
    world = draw_world(12, lvis=True)
    folder = tmp_path / "out"
    found = score(world, LVISOVEvaluator, fixed_ap=True, output_dir=str(folder))
    results = json.loads((folder / "lvis_instances_results.json").read_text())
    chosen = []
    for category_id in world.category_ids:
        own = [r for r in results if r["category_id"] == category_id]
        chosen += sorted(own, key=lambda r: -r["score"])[:6]
    for result in chosen:
        del result["segmentation"]
    truth = LVIS(str(next(tmp_path.glob("*.json"))))
    with numpy_float_alias():
        reference = LVISEval(truth, LVISResults(truth, chosen, max_dets=-1), "bbox")
        reference.run()
    for metric in METRICS:
        expected = 100 * reference.results[metric]
        assert found["bbox"][f"{metric}Fixed"] == pytest.approx(expected)


def test_fixed_ap_has_no_limit_an_image(draw_world: Draw, score: Score) -> None:
    world = draw_world(11, lvis=True, num_images=2).perfect()
    for output in world.outputs:
        found = output["instances"]
        # Surer results of a class that is in neither image, so that only a limit can do harm.
        noise = copy.deepcopy(found[[0] * 320])
        noise.scores[:] = 0.95
        noise.pred_classes[:] = world.classes.index("fox")
        output["instances"] = type(found).cat([noise, found])
    for image in world.annotations["images"]:
        image["neg_category_ids"] = []
        image["not_exhaustive_category_ids"] = []
    scores = both(score, world.without_masks(), fixed_ap=True)["bbox"]
    assert scores["AP"] == 0
    assert scores["APFixed"] == pytest.approx(100)


@BACKENDS
def test_the_class_table_agrees_with_the_scores(
    draw_world: Draw, score: Score, tmp_path: Path, backend: str
) -> None:
    world = draw_world(13, lvis=True)
    options = {"backend": backend, "fixed_ap": True, "output_dir": str(tmp_path)}
    scores = score(world, LVISOVEvaluator, **options)
    for task in ("bbox", "segm"):
        rows = list(csv.DictReader((tmp_path / f"classes_{task}.csv").open()))
        assert [row["category_id"] for row in rows] == [str(i) for i in sorted(world.category_ids)]
        assert [row["split"] for row in rows if row["class"] in world.novel] == ["novel"] * 2
        for key, letters in (("AP", "rcf"), ("APr", "r"), ("APc", "c"), ("APf", "f")):
            chosen = [row for row in rows if row["frequency"] in letters and row["AP"]]
            for column in ("AP", "APFixed"):
                mean = sum(float(row[column]) for row in chosen) / len(chosen)
                wanted = scores[task][key + column.removeprefix("AP")]
                assert mean == pytest.approx(wanted, abs=1e-4)


def test_rare_classes_are_novel_where_none_are_named(register: Register, draw_world: Draw) -> None:
    annotations = draw_world(0, lvis=True).annotations
    unnamed = LVISOVEvaluator(register(annotations, novel_classes=None)).protocol()
    assert unnamed["novel_classes"] == 2
    named = LVISOVEvaluator(register(annotations, novel_classes=["ant"]), fixed_ap=True).protocol()
    assert (named["novel_classes"], named["detections_per_image"]) == (1, 300)
    assert named["fixed_ap_detections_per_class"] == 10_000


@pytest.mark.parametrize(
    ("section", "change", "words"),
    [
        ("annotations", {"iscrowd": 1}, "iscrowd or ignore"),
        ("annotations", {"ignore": 1}, "iscrowd or ignore"),
        ("categories", {"frequency": "often"}, "frequency often, expected r, c or f"),
    ],
)
def test_what_lvis_does_not_know_is_refused(
    draw_world: Draw, score: Score, section: str, change: dict[str, Any], words: str
) -> None:
    world = draw_world(0, lvis=True)
    world.annotations[section][2].update(change)
    with pytest.raises(ValueError, match=words):
        score(world, LVISOVEvaluator)


@pytest.mark.parametrize(
    ("section", "key"), [("images", "neg_category_ids"), ("categories", "frequency")]
)
def test_a_coco_file_is_refused_by_name(
    draw_world: Draw, score: Score, section: str, key: str
) -> None:
    world = draw_world(0, lvis=True)
    for entry in world.annotations[section]:
        del entry[key]
    with pytest.raises(ValueError, match=rf"evaluation_test_0\.json lacks the key '{key}'"):
        score(world, LVISOVEvaluator)


def test_the_numpy_alias_lives_in_its_block_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(np, "float", raising=False)
    before = dict(vars(np))
    with numpy_float_alias():
        assert np.float is float
        with numpy_float_alias():
            assert np.float is float
        assert np.float is float
    with pytest.raises(ZeroDivisionError), numpy_float_alias():
        raise ZeroDivisionError
    assert vars(np) == before
