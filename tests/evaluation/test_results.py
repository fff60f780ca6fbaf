"""Careful reading of annotation files and predictions."""

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipself_d2.evaluation.results import (
    Survey,
    best_of_each_class,
    dataset_results,
    warn_undefined,
    write_results,
)

RESULT = {"image_id": 4, "category_id": 1, "score": 0.5, "bbox": [0.0, 0.0, 2.0, 2.0]}


def test_class_indices_become_category_ids_in_a_copy() -> None:
    predictions = [{"image_id": 4, "instances": [dict(RESULT)]}, {"image_id": 5, "instances": []}]
    before = copy.deepcopy(predictions)
    assert list(dataset_results(predictions, [7, 3], {4, 5})) == [{**RESULT, "category_id": 3}]
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
        list(dataset_results(predictions, [7, 3], image_ids))


def test_undefined_scores_are_put_into_words(messages: list[str]) -> None:
    warn_undefined("bbox", {"AP": 1.0, "APl": math.nan, "APr": math.nan})
    warn_undefined("segm", {"AP": 0.0})
    assert len(messages) == 1
    assert "bbox: no ground truth to score APl, APr" in messages[0]


def test_an_image_that_comes_again_counts_once(messages: list[str]) -> None:
    predictions = [
        {"image_id": 4, "instances": [dict(RESULT)]},
        {"image_id": 5, "instances": []},
        {"image_id": 4, "instances": [dict(RESULT), dict(RESULT)]},
    ]
    assert len(list(dataset_results(predictions, [7, 3], {4, 5}))) == 1
    assert any("1 images were predicted more than once" in text for text in messages)


def test_a_survey_sees_all_and_changes_nothing() -> None:
    results = [{**RESULT, "segmentation": {}}, {**RESULT, "score": 0.25}]
    survey = Survey()
    assert list(survey.see(results)) == results
    assert (survey.num_results, survey.num_masks) == (2, 1)
    assert survey.scores.tolist() == [0.5, 0.25]
    assert survey.category_ids.tolist() == [1, 1]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_written_results_are_json_and_exact(tmp_path: Path, number: int) -> None:
    results = [{**RESULT, "score": score} for score in np.random.default_rng(0).random(number)]
    write_results(tmp_path / "some.json", iter(results))
    assert json.loads((tmp_path / "some.json").read_text()) == results


def test_the_best_of_each_class_are_chosen_and_the_first_of_equals() -> None:
    categories = np.array([5, 2, 5, 5, 2, 5, 9])
    scores = np.array([0.1, 0.3, 0.7, 0.7, 0.2, 0.7, 0.0])
    chosen = best_of_each_class(categories, scores, 2)
    assert chosen.tolist() == [False, True, True, True, True, False, True]
    assert best_of_each_class(categories, scores, 4).all()
    assert best_of_each_class(categories[:0], scores[:0], 4).shape == (0,)


def test_the_best_of_each_class_are_those_of_a_sort_by_hand(rng: np.random.Generator) -> None:
    categories, scores = rng.integers(0, 7, 300), np.round(rng.random(300), 2)
    chosen = best_of_each_class(categories, scores, 20)
    for category in range(7):
        own = [i for i in range(300) if categories[i] == category]
        best = sorted(own, key=lambda i: -scores[i])[:20]
        assert sorted(best) == [i for i in own if chosen[i]]
