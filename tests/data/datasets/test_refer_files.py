import json
import logging
import os
import pickle
from pathlib import Path

import pytest

from clipself_d2.data.datasets.refer_files import in_split, load_refer, read_refs

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def ref(number: int, split: str, *texts: str, ann_id: object = 7, image_id: int = 5) -> dict:
    sentences = [
        {"sent_id": 10 * number + place, "sent": text, "raw": text.upper(), "tokens": text.split()}
        for place, text in enumerate(texts)
    ]
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "image_id": image_id,
        "category_id": 18,
        "split": split,
        "file_name": "COCO_train2014_000000000005_7.jpg",
        "sent_ids": [row["sent_id"] for row in sentences],
        "sentences": sentences,
    }


@pytest.fixture
def folder(tmp_path: Path, write_picture) -> Path:
    """One image with two objects, four references of three splits."""
    rows = [
        ref(1, "train", "left dog", "dog"),
        ref(2, "testA", "the dog", "dog on the grass", "brown"),
        ref(3, "testB", "cat", ann_id=8),
        ref(4, "train", "gone", ann_id=99),
    ]
    with (tmp_path / "refs(unc).p").open("wb") as stream:
        pickle.dump(rows, stream, protocol=2)
    document = {
        "images": [{"id": 5, "file_name": "COCO_train2014_5.jpg", "width": 40, "height": 30}],
        "annotations": [
            {"id": 7, "image_id": 5, "category_id": 18, "segmentation": SQUARE},
            {"id": 8, "image_id": 5, "category_id": 17, "segmentation": SQUARE},
        ],
    }
    (tmp_path / "instances.json").write_text(json.dumps(document))
    write_picture(tmp_path / "images" / "COCO_train2014_5.jpg")
    return tmp_path


def load(folder: Path, split: str) -> list[dict]:
    return load_refer(folder / "refs(unc).p", folder / "instances.json", folder / "images", split)


def test_training_has_one_record_a_reference_with_all_sentences(folder, caplog):
    with caplog.at_level(logging.WARNING):
        (record,) = load(folder, "train")
    assert record["sentences"] == ["left dog", "dog"]
    assert record["segmentations"] == [SQUARE]
    assert record["file_name"] == str(folder / "images" / "COCO_train2014_5.jpg")
    assert (record["height"], record["width"], record["ref_id"]) == (30, 40, 1)
    assert "1 of 2 references of train have no image or object" in caplog.text


def test_testing_has_one_record_a_sentence(folder):
    records = load(folder, "testA")
    assert [row["sentence"] for row in records] == ["the dog", "dog on the grass", "brown"]
    assert [row["sent_id"] for row in records] == [20, 21, 22]
    assert len({row["ref_id"] for row in records}) == 1
    assert [row["sentence"] for row in load(folder, "test")] == [
        "the dog",
        "dog on the grass",
        "brown",
        "cat",
    ]


@pytest.mark.parametrize(
    ("own", "split", "expected"),
    [
        ("testA", "testA", True),
        ("testB", "testA", False),
        ("testAB", "testA", True),
        ("testAB", "testB", True),
        ("test", "test", True),
        ("train", "testA", False),
        ("val", "val", True),
        ("train", "val", False),
    ],
)
def test_splits_are_found_by_their_letters(own, split, expected):
    assert in_split({"split": own}, split) == expected


def test_json_twin_is_the_pickle(folder):
    rows = read_refs(folder / "refs(unc).p")
    (folder / "refs(unc).json").write_text(json.dumps(rows))
    (folder / "refs(unc).p").unlink()
    assert read_refs(folder / "refs(unc).p") == rows


def test_a_pickle_of_python_2_is_read(tmp_path):
    # Protocol 0, a byte string beyond ASCII: [{'ref_id': 1, ..., 'split': 'caf\xe9'}] as Python 2
    # writes it.
    text = (
        b"(lp0\n(dp1\nS'ref_id'\nI1\nsS'ann_id'\nI2\nsS'image_id'\nI3\nsS'split'\nS'caf\\xe9'\n"
        b"sS'sentences'\n(lp2\nsa."
    )
    (tmp_path / "refs(unc).p").write_bytes(text)
    assert read_refs(tmp_path / "refs(unc).p")[0]["split"] == "caf\u00e9"


class Evil:
    def __reduce__(self):
        return os.system, ("touch planted",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": Evil()}]))
    with pytest.raises(ValueError, match="cannot be read as plain data .*it asks for .*system"):
        read_refs(tmp_path / "refs(unc).p")
    assert not (tmp_path / "planted").exists()


def test_a_reference_to_nothing_or_to_several_objects_is_kept(folder):
    rows = [ref(1, "val", "unicorn", ann_id=[-1]), ref(2, "val", "both", ann_id=[7, 8])]
    (folder / "refs(unc).p").unlink()
    (folder / "refs(unc).json").write_text(json.dumps(rows))
    nothing, both = load(folder, "val")
    assert nothing["segmentations"] == []
    assert both["segmentations"] == [SQUARE, SQUARE]


def test_faults_of_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match=r"refs\(google\)\.p nor refs\(google\)\.json"):
        read_refs(folder / "refs(google).p")
    with pytest.raises(ValueError, match="no usable reference of the split 'val'"):
        load(folder, "val")
    (folder / "refs(unc).p").write_bytes(b"\x80\x02]q")
    with pytest.raises(ValueError, match="cannot be read as plain data"):
        read_refs(folder / "refs(unc).p")
    (folder / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": 1}]))
    with pytest.raises(ValueError, match="lacks the key 'ann_id' in entry 0"):
        read_refs(folder / "refs(unc).p")


def test_a_missing_picture_is_named(folder):
    (folder / "images" / "COCO_train2014_5.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"COCO_train2014_5\.jpg"):
        load(folder, "train")
