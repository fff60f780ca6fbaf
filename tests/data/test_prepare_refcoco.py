import json
import logging
import pickle
from pathlib import Path

import pytest

from clipself_d2.data.datasets.refer_files import read_refs
from clipself_d2.data.prepare_refcoco import prepare_refcoco


@pytest.fixture
def root(tmp_path: Path, write_picture) -> Path:
    """RefCOCO with one reference in each split."""
    folder = tmp_path / "refcoco"
    folder.mkdir()
    rows = [
        {
            "ref_id": number,
            "ann_id": 7,
            "image_id": 5,
            "split": split,
            "sentences": [{"sent_id": number, "sent": "dog"}],
        }
        for number, split in enumerate(("train", "val", "testA", "testB"))
    ]
    (folder / "refs(unc).json").write_text(json.dumps(rows))
    document = {
        "images": [{"id": 5, "file_name": "5.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 7, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    write_picture(tmp_path / "coco" / "train2014" / "5.jpg")
    return tmp_path


def test_counts_are_compared_with_the_published_ones(root, caplog):
    with caplog.at_level(logging.INFO):
        rows = prepare_refcoco(root)
    assert rows == [
        ("refcoco_unc", "train", 1, 42404, 1),
        ("refcoco_unc", "val", 1, 3811, 1),
        ("refcoco_unc", "testA", 1, 1975, 1),
        ("refcoco_unc", "testB", 1, 1810, 1),
    ]
    assert "train has 1 references, 1 usable, but 42404 were published" in caplog.text


def test_a_twin_holds_the_same_rows(root):
    folder = root / "refcoco"
    rows = read_refs(folder / "refs(unc).json")
    (folder / "refs(unc).p").write_bytes(pickle.dumps(rows))
    (folder / "refs(unc).json").unlink()
    prepare_refcoco(root, write_json=True)
    assert json.loads((folder / "refs(unc).json").read_text()) == rows


def test_an_empty_folder_names_what_is_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"refcoco\+/refs\(unc\)\.p.*datasets/README\.md"):
        prepare_refcoco(tmp_path)
