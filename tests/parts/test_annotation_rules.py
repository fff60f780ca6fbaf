"""What single rules find, and what their mends make."""

import math
from typing import Any

import numpy as np
import pycocotools.mask as mask_util
import pytest

from clipself_d2.parts.annotation_rules import (
    ALWAYS,
    BOX_RULES,
    CATEGORY_RULES,
    COCO_SCORING,
    IMAGE_RULES,
    INSTANCE_RULES,
    LVIS_SCORING,
    SCORING,
    SEGMENT_RULES,
    TRAINING,
    Rule,
    compressed_mask,
    is_number,
    sound_polygons,
)

WIDTH, HEIGHT = 8, 6
SIZES = {1: (WIDTH, HEIGHT)}
SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
LINE = [1, 1, 3, 3, 5, 5, 2, 2]


def rows(**changes: Any) -> dict[str, Any]:
    row = {"id": 1, "image_id": 1, "bbox": [1, 1, 4, 4], "segmentation": [SQUARE], **changes}
    return {key: value for key, value in row.items() if value is not ...}


def rules_of(fault: str, purpose: str = TRAINING) -> list[Rule]:
    found = [
        rule for rule in INSTANCE_RULES if rule.fault.startswith(fault) and purpose in rule.purposes
    ]
    assert found, fault
    return found


def runs(counts: Any, size: Any = (HEIGHT, WIDTH)) -> dict[str, Any]:
    return {"counts": counts, "size": list(size)}


def packed(pixels: np.ndarray) -> dict[str, Any]:
    coded = mask_util.encode(np.asfortranarray(pixels.astype(np.uint8)))
    return {"size": list(coded["size"]), "counts": coded["counts"].decode()}


def test_numbers_are_those_that_a_float_can_hold() -> None:
    assert is_number(3)
    assert is_number(-2.5)
    strange = (math.nan, -math.inf, 10**400, True, "3", None, [3])
    assert not any(is_number(value) for value in strange)


@pytest.mark.parametrize(
    ("part", "is_sound"),
    [
        (SQUARE, True),
        ([0, 0, 4, 4, 4, 0, 0, 4], True),  # A figure of eight: no signed area, and yet pixels.
        ([1, 1, 5, 1, 5, 5, 1, 1], True),  # Closed.
        (SQUARE[:4], False),
        (SQUARE[:7], False),
        (LINE, False),
        ([1, 1, 3, 3, 1, 1], False),
        ([2, 2] * 4, False),
        ([], False),
    ],
)
def test_polygons_with_an_area_are_sound(part: list[float], is_sound: bool) -> None:
    assert sound_polygons([part, SQUARE]) == ([part] if is_sound else []) + [SQUARE]


@pytest.mark.parametrize("seed", range(5))
def test_compressed_runs_are_taken_as_pycocotools_reads_them(seed: int) -> None:
    (rule,) = rules_of("run lengths")
    rng = np.random.default_rng(seed)
    sizes = {1: (300, 40)}
    coded = packed(rng.random((40, 300)) < rng.choice([0.0, 0.001, 0.5, 0.999, 1.0]))
    assert not rule.finds(rows(segmentation=coded), sizes)
    assert rule.finds(rows(segmentation={**coded, "counts": coded["counts"] + "1"}), sizes)


@pytest.mark.parametrize(
    ("mask", "has_fault"),
    [
        (runs([10, 4, 34]), False),
        (runs([48]), False),
        (runs([10, 4]), True),
        (runs([10, -4, 42]), True),
        (runs([10.0, 38]), True),
        (runs([10, 4, 34], (WIDTH, HEIGHT)), True),
        (runs([10, 4, 34], ()), True),
        (runs(None), True),
        (runs(48), True),
        (runs(""), True),
        (runs("~"), True),
        (runs("P"), True),  # More letters are to follow.
        ({"counts": [48]}, True),
        ({"size": [HEIGHT, WIDTH]}, True),
        ({}, True),
    ],
)
def test_runs_must_fill_the_image(mask: dict[str, Any], has_fault: bool) -> None:
    (rule,) = rules_of("run lengths")
    assert rule.finds(rows(segmentation=mask), SIZES) is has_fault


def test_run_lengths_of_both_forms_become_the_same() -> None:
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[1:4, 2:5] = True
    coded = packed(pixels)
    counts = np.diff(np.flatnonzero(np.diff(pixels.T.ravel(), prepend=0, append=2)), prepend=0)
    plain = compressed_mask(runs(counts.tolist()), (WIDTH, HEIGHT))
    for mask in (coded, plain):
        assert np.array_equal(mask_util.decode(compressed_mask(mask, (WIDTH, HEIGHT))), pixels)


@pytest.mark.parametrize(
    ("changes", "area"),
    [
        ({"segmentation": [[0, 0, 8, 0, 8, 2, 0, 2]]}, 16),
        ({"segmentation": [[0, 0, 4, 0, 4, 2, 0, 2], [0, 0, 8, 0, 8, 2, 0, 2]]}, 16),
        ({"segmentation": runs([10, 4, 34])}, 4),
        ({"segmentation": []}, 16),
        ({"segmentation": None}, 16),
        ({"segmentation": ...}, 16),
    ],
)
@pytest.mark.parametrize("given", [..., None, "16", math.nan, -1, True])
def test_area_is_that_of_the_mask_or_the_box(
    changes: dict[str, Any], area: int, given: Any
) -> None:
    row = rows(**changes, area=given)
    for purpose in SCORING:
        (rule,) = rules_of("no area", purpose)
        assert rule.finds(row, SIZES)
        assert rule.mend is not None
        assert rule.mend(row, SIZES) == {**row, "area": float(area)}
        assert not rule.finds({**row, "area": 0}, SIZES)


def test_objects_without_a_sound_polygon_are_not_trained_but_still_to_be_found() -> None:
    row = rows(segmentation=[LINE])
    (training,) = rules_of("a polygon", TRAINING)
    assert training.mend is not None
    assert training.mend(row, SIZES) is None
    (scoring,) = rules_of("a polygon", COCO_SCORING)
    assert scoring.mend is not None
    mended = scoring.mend(row, SIZES)
    assert mended is not None
    assert mended["bbox"] == row["bbox"]
    pixels = mask_util.decode(mended["segmentation"])
    assert pixels.shape == (HEIGHT, WIDTH)
    assert not pixels.any()
    for rule in (training, scoring):
        both = rows(segmentation=[SQUARE, LINE])
        assert rule.mend is not None
        assert rule.mend(both, SIZES) == rows(segmentation=[SQUARE])
        assert both == rows(segmentation=[SQUARE, LINE])


def test_sound_rows_have_no_fault() -> None:
    sound = rows(area=16.0, iscrowd=0)
    for mask in ([SQUARE], [], None, ..., runs([10, 4, 34])):
        row = {**rows(segmentation=mask), "area": 16.0, "iscrowd": 0}
        assert not [rule.fault for rule in INSTANCE_RULES if rule.finds(row, SIZES)]
    assert not [rule for rule in BOX_RULES if rule.finds(sound, {})]
    image = {"id": "a", "width": 4, "height": 3.0, "file_name": "a.jpg", "neg_category_ids": [1]}
    assert not [rule for rule in IMAGE_RULES if rule.finds(image, {})]
    assert not [rule for rule in CATEGORY_RULES if rule.finds({"id": 0, "name": "cat"}, {})]
    part = {"file_name": "a.png", "segments_info": [{"id": 3}]}
    assert not [rule for rule in SEGMENT_RULES if rule.finds(part, {})]


def test_no_rule_is_without_a_purpose_or_words() -> None:
    for rule in (*IMAGE_RULES, *CATEGORY_RULES, *INSTANCE_RULES, *SEGMENT_RULES):
        assert rule.purposes
        assert set(rule.purposes) <= set(ALWAYS)
        assert rule.mend or rule.advice.startswith("expected ")
    assert set(ALWAYS) == {TRAINING, COCO_SCORING, LVIS_SCORING}
