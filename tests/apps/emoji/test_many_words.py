"""CAT-Seg's time and mIoU over the number of words."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.modeling import build_model

from clipself_d2.apps.emoji import many_words
from clipself_d2.apps.emoji.many_words import DATASET, list_words, measure_words
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.evaluation.build import build_segment_evaluator
from clipself_d2.parts.text_embeddings import semantic_vocabulary


@pytest.fixture
def run(emoji_cfg, tmp_path):
    cfg = emoji_cfg("catseg_untouched", "MODEL.CAT_SEG.CLIP_SIZE", 48, "INPUT.MIN_SIZE_TEST", 48)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    return tmp_path


def cells(table: str) -> list[list[float]]:
    return [
        [float(cell) for cell in line.strip("| ").split("|")] for line in table.splitlines()[2:]
    ]


def test_a_shorter_list_begins_a_longer_one_and_the_own_classes_come_first() -> None:
    own = ["dog", "car", "sky"]
    long = list_words(own, 847)
    assert len(set(long)) == 847
    assert set(long[:3]) == set(own)
    assert list_words(own, 2) == long[:2]


def test_all_own_classes_score_what_the_evaluator_gives_the_whole_model(run, emoji_data) -> None:
    own = semantic_vocabulary(DATASET).names
    rows = cells(measure_words(run, [4, len(own), 120], (0, 3), num_pictures=2))
    assert [row[:2] for row in rows] == [[4, 3], [4, 4], [88, 3], [88, 32], [120, 3], [120, 32]]
    predictor = OpenVocabPredictor(run / "config.yaml", run / "model_final.pth")
    evaluator = build_segment_evaluator(DATASET, None)
    for record in DatasetCatalog.get(DATASET)[:2]:
        evaluator.process([record], [predictor(record["file_name"])])
    assert rows[3][3] == pytest.approx(evaluator.evaluate()["sem_seg"]["mIoU"], abs=0.1)


def test_labels_of_other_classes_are_ignored(tmp_path, monkeypatch) -> None:
    labels = np.array([[0, 1, 2, 255]])
    monkeypatch.setattr(many_words, "read_label_map", lambda path: labels)
    records = [{"file_name": "a", "sem_seg_file_name": "a.png"}]
    evaluator = many_words._evaluator(["dog", "car", "sky"], ["sky", "dog"], records)
    right = torch.zeros(2, 1, 4)
    right[0, 0, 2:] = 1
    right[1, 0, :2] = 1
    evaluator.process(records, [{"sem_seg": right}])
    scores = evaluator.evaluate()["sem_seg"]
    assert (scores["mIoU"], scores["pACC"]) == (100.0, 100.0)


def test_a_run_of_another_model_is_refused(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("fvit_untouched")
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model_final.pth")
    (tmp_path / "config.yaml").write_text(cfg.dump())
    with pytest.raises(ValueError, match="name the run of a CATSegmentor"):
        measure_words(tmp_path, [4])
