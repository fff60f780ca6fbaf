import json
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog

from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.evaluate import (
    embed_vocabulary,
    evaluate_detector,
    evaluate_regions,
    vocabulary_of,
    warn_unseen_words,
)
from clipself_d2.engine.trainer import Trainer
from clipself_d2.layers import TextClassifier
from clipself_d2.vocabulary import Vocabulary

TINY = ("MODEL.CLIP.PRETRAINED", "emoji")


def classifier(model: torch.nn.Module) -> TextClassifier:
    return next(module for module in model.modules() if isinstance(module, TextClassifier))


def test_a_data_sets_vocabulary_is_used_and_given_back(emoji_cfg) -> None:
    cfg = emoji_cfg("fvit_untouched", *TINY)
    model = Trainer.build_model(cfg)
    before = classifier(model).embeddings_KD.clone()
    MetadataCatalog.get("three_words").set(thing_classes=["dog", "car", "key"])
    try:
        with vocabulary_of(cfg, model, "three_words"):
            assert classifier(model).num_classes == 3
    finally:
        MetadataCatalog.remove("three_words")
    assert torch.equal(classifier(model).embeddings_KD, before)


def test_a_model_without_text_is_left_alone(emoji_cfg) -> None:
    with vocabulary_of(emoji_cfg("rpn"), torch.nn.Linear(1, 1), "emoji_ov_val") as nothing:
        assert nothing is None


def test_both_protocols_score_a_detector_and_the_results_are_written(emoji_cfg) -> None:
    cfg = emoji_cfg("fvit_untouched", *TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
    cfg.merge_from_list(["DATASETS.TEST", ("emoji_ov_val", "emoji_lvis_val")])
    results = evaluate_detector(cfg, Trainer.build_model(cfg).eval())
    assert set(results) == {"emoji_ov_val", "emoji_lvis_val"}
    written = json.loads((Path(cfg.OUTPUT_DIR) / "results.json").read_text())
    coco, lvis = written["emoji_ov_val"]["bbox"], written["emoji_lvis_val"]["bbox"]
    assert {"AP50-base", "AP50-novel", "AP50-all"} <= set(coco)
    assert {"AP", "APr", "APc", "APf"} <= set(lvis)


def test_both_scorers_agree_on_both_protocols(emoji_cfg) -> None:
    scores = []
    for backend in ("hotcoco", "reference"):
        cfg = emoji_cfg("fvit_untouched", *TINY, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0)
        cfg.merge_from_list(["DATASETS.TEST", ("emoji_ov_val", "emoji_lvis_val")])
        cfg.merge_from_list(["TEST.BACKEND", backend])
        torch.manual_seed(0)
        results = evaluate_detector(cfg, Trainer.build_model(cfg).eval())
        scores.append({**results["emoji_ov_val"]["bbox"], **results["emoji_lvis_val"]["bbox"]})
    fast, reference = scores
    assert set(fast) == set(reference)
    assert max(fast["AP50"], fast["APf"]) > 0
    for name, value in fast.items():
        assert value == pytest.approx(reference[name], abs=1e-6, nan_ok=True), name


def test_regions_of_the_shipped_clip_are_named_better_by_crops(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", *TINY, "DATASETS.TEST", ("emoji_panoptic_val",))
    results = evaluate_regions(cfg, DistillTrainer.build_model(cfg).eval())["region"]
    assert results["crop.thing.macc1"] > 60
    assert results["crop.thing.macc1"] > 3 * results["roi.thing.macc1"]


def test_regions_need_panoptic_ground_truth(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "DATASETS.TEST", ("emoji_ov_val",))
    with pytest.raises(ValueError, match=r"DATASETS\.TEST holds emoji_ov_val"):
        evaluate_regions(cfg, DistillTrainer.build_model(cfg))


def test_embeddings_follow_the_names(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn", *TINY)
    two = embed_vocabulary(cfg, Vocabulary.from_names(["dog", "car"])).embeddings_KD
    swapped = embed_vocabulary(cfg, Vocabulary.from_names(["car", "dog"])).embeddings_KD
    torch.testing.assert_close(two, swapped.flip(0))


def test_only_unseen_words_are_warned_of(emoji_cfg, caplog: pytest.LogCaptureFixture) -> None:
    cfg = emoji_cfg("rpn", *TINY)
    with caplog.at_level("WARNING", logger="clipself_d2"):
        assert warn_unseen_words(cfg, Vocabulary.from_names(["police car"])) == []
        assert not caplog.records
        assert warn_unseen_words(cfg, Vocabulary.from_names(["wombat"])) == ["wombat"]
    assert "wombat" in caplog.text
