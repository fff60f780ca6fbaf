"""Drawing and writing of segments, and the demo with a panoptic model."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.apps.predict.demo import run_demo
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.segments import (
    PanopticFile,
    class_colour,
    draw_segments,
    segments_of,
)
from clipself_d2.parts.label_maps import check_segments, read_segment_colours, segment_ids
from clipself_d2.vocabulary import Vocabulary

IDS = np.array([[1] * 20 + [2] * 20] * 10, np.int32)
ROWS = [{"id": 1, "category_id": 0, "score": 0.5}, {"id": 2, "category_id": 1}]


def test_colours_legend_and_border() -> None:
    drawn = draw_segments(np.zeros((10, 40, 3), np.uint8), IDS, ROWS, ["dog", "grass"])
    assert drawn.shape[0] > 120
    assert drawn.shape[1] == 480
    for column, label in ((60, 0), (420, 1)):
        wanted = 0.5 * np.asarray(class_colour(label))
        assert np.abs(drawn[60, column] - wanted).max() <= 1
    assert (drawn[60, 240] == 255).all()
    assert (drawn[120:] != 24).any()


def test_semantic_maps_are_a_segment_a_class() -> None:
    scores = torch.full((3, 4, 6), -2.0)
    scores[0], scores[2, :, :3] = -1.0, 1.0
    ids, rows = segments_of({"sem_seg": scores})
    assert ids[0].tolist() == [3, 3, 3, 1, 1, 1]
    assert [(row["id"], row["category_id"]) for row in rows] == [(1, 0), (3, 2)]
    assert segments_of({"instances": None}) is None


def test_the_file_is_cocos(tmp_path) -> None:
    file = PanopticFile(tmp_path, ["dog", "grass"], [True, False])
    file.add("a.jpg", "a", IDS * 1000, [{**row, "id": row["id"] * 1000} for row in ROWS])
    content = json.loads(file.save().read_text())
    assert content["categories"][1] == {"id": 1, "name": "grass", "isthing": 0}
    row = content["annotations"][0]
    ids = segment_ids(read_segment_colours(str(tmp_path / "panoptic" / row["file_name"])))
    check_segments(ids, row["segments_info"], "a")
    assert row["segments_info"][0]["bbox"] == [0, 0, 20, 10]
    assert row["segments_info"][0]["area"] == 200
    assert row["segments_info"][0]["score"] == 0.5


@pytest.fixture
def panoptic(emoji_cfg, tmp_path):
    """Config of a small panoptic model with random weights."""
    cfg = emoji_cfg(
        "ov_panoptic_untouched",
        "MODEL.OV_PANOPTIC.NUM_QUERIES",
        6,
        "MODEL.CLIP.PRETRAINED",
        "emoji",
    )
    from detectron2.modeling import build_model

    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg.MODEL.WEIGHTS = str(tmp_path / "model.pth")
    return cfg


def test_demo_draws_and_writes_segments_of_typed_words(panoptic, tmp_path) -> None:
    Image.new("RGB", (96, 64), (200, 30, 30)).save(tmp_path / "a.jpg")
    out = tmp_path / "out"
    words = Vocabulary.from_names(["apple", "grass"])
    run_demo(panoptic, [tmp_path / "a.jpg"], out, words, 0.0)
    content = json.loads((out / "panoptic.json").read_text())
    assert [row["name"] for row in content["categories"]] == ["apple", "grass"]
    assert (out / "a.png").is_file()
    assert (out / "panoptic" / "a.png").is_file()


def test_typed_words_are_stuff_and_novel_where_the_training_says_so(panoptic) -> None:
    predictor = OpenVocabPredictor(panoptic)
    stuff = predictor.names[-1]
    predictor.set_classes(["zebra crossing", stuff])
    assert predictor.thing_mask == (True, False)
    assert predictor.prompts.embeddings.vocabulary.base_mask == (False, True)


def test_pixels_without_a_score_have_no_segment() -> None:
    scores = torch.zeros(2, 2, 2)
    scores[1, 0, 0] = 0.5
    ids, rows = segments_of({"sem_seg": scores})
    assert ids.tolist() == [[2, 0], [0, 0]]
    assert [row["category_id"] for row in rows] == [1]
