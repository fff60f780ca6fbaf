import json
import pickle
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.refcoco import FAMILIES, register_emoji_refer, register_refcoco


def test_every_published_split_is_registered_on_import():
    names = {f"{prefix}_{split}" for prefix, family in FAMILIES.items() for split in family.counts}
    assert len(names) == 17
    assert names <= set(DatasetCatalog.list())
    assert {"emoji_refer_train", "emoji_refer_val"} <= set(DatasetCatalog.list())
    for name in names:
        metadata = MetadataCatalog.get(name)
        assert metadata.evaluator_type == "refer"
        assert metadata.image_root.endswith("train2014")


def test_plus_has_its_own_folder_and_umd_its_own_file():
    assert Path(MetadataCatalog.get("refcocoplus_unc_val").refs_file).parts[-2:] == (
        "refcoco+",
        "refs(unc).p",
    )
    assert MetadataCatalog.get("refcocog_umd_test").refs_file.endswith("refs(umd).p")
    assert MetadataCatalog.get("grefcoco_unc_testA").refs_file.endswith("grefcoco/grefs(unc).p")


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """Names of the data sets, which are below the temporary folder for once."""
    for catalog in (DatasetCatalog, MetadataCatalog):
        kept = {name: value for name, value in catalog.items() if "refcoco" not in name}
        monkeypatch.setattr(catalog, "data", kept)
    return register_refcoco(tmp_path)


@pytest.mark.parametrize("prefix", FAMILIES)
def test_each_split_gets_its_own_references(prefix, registered, tmp_path, write_picture):
    family = FAMILIES[prefix]
    folder = tmp_path / family.folder
    folder.mkdir()
    rows = [
        {"ref_id": number, "ann_id": 7, "image_id": 5, "split": split}
        | {"sentences": [{"sent": split}, {"sent": "dog"}]}
        for number, split in enumerate(family.counts)
    ]
    (folder / family.refs_name).write_bytes(pickle.dumps(rows, protocol=2))
    document = {
        "images": [{"id": 5, "file_name": "5.jpg", "width": 40, "height": 30}],
        "annotations": [{"id": 7, "segmentation": [[0, 0, 4, 0, 4, 4]]}],
    }
    (folder / "instances.json").write_text(json.dumps(document))
    write_picture(tmp_path / "coco" / "train2014" / "5.jpg")
    for split in family.counts:
        records = DatasetCatalog.get(f"{prefix}_{split}")
        if split == "train":
            assert [record["sentences"] for record in records] == [["train", "dog"]]
        else:
            assert [record["sentence"] for record in records] == [split, "dog"]


def test_missing_files_name_the_remedy(registered):
    assert len(registered) == 17
    with pytest.raises(FileNotFoundError, match=r"instances\.json is missing; put the files"):
        DatasetCatalog.get("refcoco_unc_val")


def test_emoji_references_have_one_object_each(emoji_root, catalogs):
    train, val = register_emoji_refer(emoji_root, prefix="tiny")
    assert (train, val) == ("tiny_refer_train", "tiny_refer_val")
    files = emoji_root / "emoji" / "annotations"
    records = DatasetCatalog.get(train)
    assert len(records) == len(json.loads((files / "refs_train.json").read_text()))
    assert all(len(record["segmentations"]) == 1 for record in records)
    assert all(record["sentences"] for record in records)
    sentences = DatasetCatalog.get(val)
    rows = json.loads((files / "refs_val.json").read_text())
    assert len(sentences) == sum(len(row["sentences"]) for row in rows)
    names = [record["file_name"] for record in sentences]
    assert names == sorted(names)
