import json
import logging
import os
import pickle
import tracemalloc
from pathlib import Path

import numpy as np
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
        b"sS'sentences'\n(lp2\n(dp3\nS'sent'\nS'dog'\nsasa."
    )
    (tmp_path / "refs(unc).p").write_bytes(text)
    assert read_refs(tmp_path / "refs(unc).p")[0]["split"] == "caf\u00e9"


class Evil:
    def __reduce__(self):
        return os.system, ("touch planted",)


class EvilState:
    def __getstate__(self):
        return {"x": Evil()}


RUN = b"S'touch planted'\n"
ATTACKS = {
    "reduce": pickle.dumps([{"ref_id": Evil()}]),
    "reduce of protocol 0": pickle.dumps([{"ref_id": Evil()}], protocol=0),
    "object of a class": pickle.dumps([EvilState()], protocol=2),
    "global": b"cos\nsystem\n(" + RUN + b"tR.",
    "global of builtins": b'cbuiltins\neval\n(S\'open("planted","w")\'\ntR.',
    "global of python 2": b'c__builtin__\neval\n(S\'open("planted","w")\'\ntR.',
    "inst": b"(" + RUN + b"ios\nsystem\n.",
    "obj": b"(cos\nsystem\n" + RUN + b"o.",
    "stack global": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\rtouch planted\x85R.",
    "new object": b"\x80\x02csubprocess\nPopen\n]\x8c\x05touchq\x00a\x85\x81.",
    "dotted name": b"\x80\x04\x8c\x08builtins\x8c\x0d__import__.os\x93.",
    "extension": b"\x80\x02\x82\x01.",
    "persistent id": b"Pplanted\n.",
    "persistent id of the stack": b"S'planted'\nQ.",
    "numpy scalar": pickle.dumps([{"ref_id": np.int64(3)}]),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_a_pickle_with_code_is_refused_and_not_run(kind, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "refs(unc).p"
    file.write_bytes(ATTACKS[kind])
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p cannot be read as plain data") as caught:
        read_refs(file)
    assert str(caught.value).count("\n") == 0
    assert list(tmp_path.iterdir()) == [file]


def test_a_refused_pickle_says_what_it_asks_for(tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(ATTACKS["reduce"])
    with pytest.raises(ValueError, match="it asks for .*system"):
        read_refs(tmp_path / "refs(unc).p")


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_damage_is_one_sentence_whatever_byte_it_hits(protocol, tmp_path):
    rows = [ref(number, "train", "left dog", "dog") for number in range(2)]
    whole = pickle.dumps(rows, protocol=protocol)
    rng = np.random.default_rng(protocol)
    file = tmp_path / "refs(unc).p"
    refused = 0
    for _ in range(60):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        file.write_bytes(damaged[: rng.integers(1, len(whole) + 1)])
        try:
            read_refs(file)
        except ValueError as error:
            refused += str(error).startswith(str(file))
    assert refused > 30


def test_a_few_bytes_cannot_take_all_memory(tmp_path):
    # "Remember this list as number 2,000,000,000."
    (tmp_path / "refs(unc).p").write_bytes(b"\x80\x02]r\x00\x94\x35\x77.")
    tracemalloc.start()
    assert read_refs(tmp_path / "refs(unc).p") == []
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_id": "5"}, "image_id '5' and ann_id 7 are no whole numbers in entry 0"),
        ({"ann_id": [7, None]}, r"ann_id \[7, None\] are no whole numbers"),
        ({"split": 3}, "split 3 is no text"),
        ({"sentences": []}, r"sentences \[\] is no list with a sentence"),
        ({"sentences": ["dog"]}, "'dog' has no text 'sent'"),
        ({"sentences": [{"sent": b"dog"}]}, "has no text 'sent'"),
    ],
)
def test_values_of_another_type_are_named(change, message, tmp_path):
    (tmp_path / "refs(unc).p").write_bytes(pickle.dumps([{**ref(1, "val", "dog"), **change}]))
    with pytest.raises(ValueError, match=message):
        read_refs(tmp_path / "refs(unc).p")


def test_a_twin_of_nonsense_is_one_sentence(tmp_path):
    for text in ("[" * 100_000, "{", '{"a": 1}', "[3]"):
        (tmp_path / "refs(unc).json").write_text(text)
        with pytest.raises(ValueError, match=r"refs\(unc\)\.json"):
            read_refs(tmp_path / "refs(unc).p")


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
    (folder / "images" / "COCO_train2014_5.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"COCO_train2014_5\.jpg"):
        load(folder, "train")
    (folder / "refs(unc).p").write_bytes(b"\x80\x02]q")
    with pytest.raises(ValueError, match="cannot be read as plain data"):
        read_refs(folder / "refs(unc).p")
    (folder / "refs(unc).p").write_bytes(pickle.dumps([{"ref_id": 1}]))
    with pytest.raises(ValueError, match="lacks the key 'ann_id' in entry 0"):
        read_refs(folder / "refs(unc).p")
