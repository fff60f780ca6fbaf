import json
import logging
import pickle
from pathlib import Path

import pytest

from clipself_d2.apps.prepare.refcoco import prepare_refcoco, write_json_twin
from clipself_d2.data.datasets.refcoco import FAMILIES, ReferFamily
from clipself_d2.data.datasets.refer_files import read_refs


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


def test_a_set_without_published_numbers_is_counted_and_missing_objects_are_told(root, caplog):
    gref = root / "grefcoco"
    (root / "refcoco").rename(gref)
    rows = json.loads((gref / "refs(unc).json").read_text())
    rows[1]["ann_id"] = [-1]
    rows[2]["ann_id"] = [7, 7]
    rows.append({**rows[0], "ref_id": 9, "ann_id": [99]})
    (gref / "refs(unc).json").unlink()
    (gref / "grefs(unc).json").write_text(json.dumps(rows))
    assert prepare_refcoco(root) == [
        ("grefcoco_unc", "train", 2, None, 1),
        ("grefcoco_unc", "val", 1, None, 1),
        ("grefcoco_unc", "testA", 1, None, 1),
        ("grefcoco_unc", "testB", 1, None, 1),
    ]
    assert "train has 2 references, 1 usable, but 2 are expected" in caplog.text
    assert "val has" not in caplog.text


def test_published_counts_raise_no_warning(root, caplog, monkeypatch):
    counts = dict.fromkeys(("train", "val", "testA", "testB"), 1)
    monkeypatch.setitem(FAMILIES, "refcoco_unc", ReferFamily("refcoco", "unc", counts))
    with caplog.at_level(logging.WARNING):
        prepare_refcoco(root)
    assert caplog.text == ""


def test_what_json_cannot_hold_is_named_and_leaves_no_file(root):
    folder = root / "refcoco"
    rows = read_refs(folder / "refs(unc).json")
    rows[0]["raw"] = b"bytes"
    (folder / "refs(unc).json").unlink()
    (folder / "refs(unc).p").write_bytes(pickle.dumps(rows))
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p has no form in JSON"):
        write_json_twin(folder / "refs(unc).p")
    assert sorted(path.name for path in folder.iterdir()) == ["instances.json", "refs(unc).p"]
