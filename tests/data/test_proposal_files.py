import os
import pickle

import numpy as np
import pytest
from detectron2.config import get_cfg
from detectron2.data.build import load_proposals_into_dataset
from detectron2.structures import BoxMode

from clipself_d2.data.proposal_files import check_proposal_files

BOXES = [np.array([[0, 0, 4, 4], [1, 1, 3, 3]], np.float32), np.zeros((0, 4), np.float32)]
SCORES = [np.array([0.5, 2.0], np.float32), np.zeros(0, np.float32)]
DETECTRON2 = {"ids": [3, 5], "boxes": BOXES, "objectness_logits": SCORES}
FILES = {
    "detectron2": DETECTRON2,
    "with the mode's number": {**DETECTRON2, "bbox_mode": BoxMode.XYWH_ABS.value},
    "with the mode itself": {**DETECTRON2, "bbox_mode": BoxMode.XYWH_ABS},
    "detectron": {"indexes": [3, 5], "boxes": BOXES, "scores": SCORES},
    "ids of numpy": {**DETECTRON2, "ids": [np.int64(3), np.int64(5)]},
}


def config(*files):
    cfg = get_cfg()
    cfg.MODEL.LOAD_PROPOSALS = True
    cfg.DATASETS.PROPOSAL_FILES_TRAIN = tuple(map(str, files))
    return cfg


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("kind", FILES)
def test_published_forms_pass_and_detectron2_reads_them(tmp_path, kind, protocol):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(FILES[kind], protocol))
    check_proposal_files(config(file), "TRAIN")
    (record,) = load_proposals_into_dataset([{"image_id": 3}], str(file))
    assert record["proposal_objectness_logits"].tolist() == [2.0, 0.5]


def test_code_is_refused_with_the_key(tmp_path):
    class Planted:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "ran"),))

    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps({**DETECTRON2, "ids": Planted()}, 2))
    with pytest.raises(ValueError, match=r"asks for posix.mkdir.*DATASETS.PROPOSAL_FILES_TRAIN"):
        check_proposal_files(config(file), "TRAIN")
    assert not (tmp_path / "ran").exists()
    check_proposal_files(get_cfg(), "TRAIN")


@pytest.mark.parametrize(
    "content", [[], {}, {**DETECTRON2, "boxes": BOXES[:1]}, {"ids": [1], "boxes": BOXES[:1]}]
)
def test_missing_parts_are_named(tmp_path, content):
    file = tmp_path / "a.pkl"
    file.write_bytes(pickle.dumps(content, 2))
    with pytest.raises(ValueError, match="expected (lists )?ids, boxes, objectness_logits"):
        check_proposal_files(config(file), "TRAIN")


def test_missing_file_is_named_with_the_key(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pkl of DATASETS.PROPOSAL_FILES_TRAIN"):
        check_proposal_files(config(tmp_path / "nowhere.pkl"), "TRAIN")
