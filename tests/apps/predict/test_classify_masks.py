"""Masks are named by what a tower sees inside, written in their form, and scored."""

import json

import numpy as np
import pytest
import torch
from pycocotools import mask as rle

from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.apps.predict.classify_masks import (
    MaskNaming,
    classify_masks,
    embed_masks,
    name_masks,
)
from clipself_d2.parts.text_embeddings import dataset_vocabulary
from clipself_d2.vocabulary import Vocabulary

SPEC = TowerSpec.parse("ViT-Ti-8-emoji:emoji")
NAME = "emoji_ov_panoptic_val"


@pytest.mark.parametrize("pooling", ["hard", "soft", "tokens"])
def test_the_mask_of_a_whole_picture_is_its_mean_or_its_embedding(pooling: str) -> None:
    tower = SPEC.load()
    pixels = np.random.default_rng(0).integers(0, 256, (32, 48, 3), np.uint8)
    masks = np.stack([np.ones((32, 48), bool), np.zeros((32, 48), bool)])
    got = embed_masks(tower, pixels, masks, MaskNaming(pooling=pooling))
    image = torch.from_numpy(pixels).permute(2, 0, 1).float()[None]
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.pixel_mean, tower.pixel_std))
    with torch.no_grad():
        if pooling == "tokens":
            wanted = tower.forward_image((image - mean) / std)[0]
        else:
            wanted = tower.forward_dense((image - mean) / std).embedding[0].mean((1, 2))
    torch.testing.assert_close(
        got[0], torch.nn.functional.normalize(wanted, dim=0), rtol=1e-4, atol=1e-5
    )
    assert not got[1].any()


def test_a_mask_without_a_cell_scores_nothing() -> None:
    text = torch.eye(3)
    score, label = name_masks(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]), text, 100.0)
    assert label[0] == 1
    assert score[0] > 0.99
    assert score[1] == 0


def test_panoptic_masks_are_named_written_and_scored(emoji_data, tmp_path) -> None:
    emoji, out = emoji_data / "emoji", tmp_path / "out"
    scores = classify_masks(
        SPEC,
        emoji / "annotations" / "panoptic_val.json",
        emoji / "val",
        dataset_vocabulary(NAME),
        out,
        maps=emoji / "panoptic_val",
        dataset=NAME,
    )
    assert set(scores) == {"panoptic_seg", "sem_seg"}
    assert json.loads((out / "scores.json").read_text())["sem_seg"].keys() >= {"mIoU"}
    written = json.loads((out / "panoptic.json").read_text())
    assert len(written["annotations"]) == 4
    assert len(list((out / "pictures").iterdir())) == 4
    # What was written can be read and named again.
    again = classify_masks(
        SPEC, out / "panoptic.json", emoji / "val", dataset_vocabulary(NAME), tmp_path / "again",
        maps=out / "panoptic", dataset=NAME,
    )  # fmt: skip
    assert again["sem_seg"]["pACC"] == pytest.approx(scores["sem_seg"]["pACC"], abs=5)


def test_results_keep_their_rows_and_are_scored_as_instances(emoji_data, tmp_path) -> None:
    emoji = emoji_data / "emoji"
    truth = json.loads((emoji / "annotations" / "instances_val.json").read_text())
    sizes = {row["id"]: (row["height"], row["width"]) for row in truth["images"]}
    rows = []
    for row in truth["annotations"]:
        encoded = rle.merge(rle.frPyObjects(row["segmentation"], *sizes[row["image_id"]]))
        encoded["counts"] = encoded["counts"].decode()
        rows.append(
            {"image_id": row["image_id"], "segmentation": encoded, "score": 0.5, "mine": row["id"]}
        )
    (tmp_path / "results.json").write_text(json.dumps(rows))
    vocabulary = dataset_vocabulary("emoji_ov_val")
    scores = classify_masks(
        SPEC, tmp_path / "results.json", emoji / "val", vocabulary, tmp_path / "out",
        dataset="emoji_ov_val",
    )  # fmt: skip
    assert "AP50" in scores["segm"]
    named = json.loads((tmp_path / "out" / "results.json").read_text())
    assert [row["mine"] for row in named] == [row["mine"] for row in rows]
    assert {row["category_id"] for row in named} <= {row["id"] for row in truth["categories"]}
    assert all(0 <= row["score"] <= 0.5 for row in named)


def test_a_truth_of_other_classes_is_refused(emoji_data, tmp_path) -> None:
    emoji, words = emoji_data / "emoji", Vocabulary.from_names(["dog"])
    for dataset, complaint in (("emoji_ov_panoptic_val", "name its own"), ("emoij", "registered")):
        with pytest.raises(ValueError, match=complaint):
            classify_masks(
                SPEC, emoji / "annotations" / "panoptic_val.json", emoji / "val", words,
                tmp_path / "out", maps=emoji / "panoptic_val", dataset=dataset,
            )  # fmt: skip
