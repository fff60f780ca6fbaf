from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.apps.prepare.ov import prepare_ov_lvis
from clipself_d2.data.datasets.lvis_ov import lvis_metadata, register_lvis_ov
from clipself_d2.evaluation import LVISOVEvaluator
from clipself_d2.vocabulary import Vocabulary


def test_the_split_is_866_base_and_337_novel() -> None:
    metadata = lvis_metadata()
    assert len(metadata["thing_classes"]) == len(set(metadata["thing_classes"])) == 1203
    assert len(metadata["base_classes"]) == 866
    assert len(metadata["novel_classes"]) == 337
    pairs = zip(metadata["thing_classes"], metadata["class_frequency"], strict=True)
    assert {name for name, kind in pairs if kind == "r"} == set(metadata["novel_classes"])


def test_a_vocabulary_can_be_made_of_the_metadata() -> None:
    vocabulary = Vocabulary.from_metadata(MetadataCatalog.get("lvis_ov_val"))
    assert vocabulary.frequency is not None
    assert vocabulary.frequency.count("c") == 461
    assert vocabulary.base_mask.count(False) == 337


def test_synonyms_are_further_names() -> None:
    metadata = lvis_metadata()
    names, synonyms = metadata["thing_classes"], metadata["class_synonyms"]
    assert len(synonyms) == 1203
    assert synonyms[names.index("aerosol_can")] == ["spray_can"]
    assert synonyms[names.index("bull")] == ["horned_cow"]
    assert not any(name in others for name, others in zip(names, synonyms, strict=True))


def test_records_find_images_in_both_folders_without_file_names(
    lvis_root: Path, catalogs: None
) -> None:
    register_lvis_ov(lvis_root, prefix="tiny_")
    records = DatasetCatalog.get("tiny_lvis_ov_val")
    folders = [Path(record["file_name"]).parent.name for record in records]
    assert folders == ["train2017", "val2017"]
    assert records[0]["neg_category_ids"] == [5]
    assert [row["category_id"] for row in records[0]["annotations"]] == [0, 2, 12]


def test_training_has_no_rare_box_and_minival_is_the_part_in_val2017_and_can_be_scored(
    lvis_root: Path, catalogs: None
) -> None:
    prepare_ov_lvis(lvis_root)
    register_lvis_ov(lvis_root, prefix="tiny_")
    for record in DatasetCatalog.get("tiny_lvis_ov_train"):
        assert [row["category_id"] for row in record["annotations"]] == [0, 2]
    assert [r["image_id"] for r in DatasetCatalog.get("tiny_lvis_ov_minival")] == [22]
    assert MetadataCatalog.get("tiny_lvis_ov_minival").evaluator_type == "lvis_ov"
    LVISOVEvaluator("tiny_lvis_ov_minival")


def test_a_url_counts_before_a_file_name(lvis_root: Path, catalogs: None) -> None:
    file = lvis_root / "lvis" / "lvis_v1_val.json"
    text = file.read_text().replace('"width": 40', '"width": 40, "file_name": "1.jpg"')
    file.write_text(text)
    register_lvis_ov(lvis_root, prefix="tiny_")
    assert len(DatasetCatalog.get("tiny_lvis_ov_val")) == 2


def test_the_image_list_has_no_annotation(lvis_root: Path, catalogs: None) -> None:
    register_lvis_ov(lvis_root, prefix="tiny_")
    records = DatasetCatalog.get("tiny_lvis_v1_train_images")
    assert [sorted(record) for record in records] == [
        ["file_name", "height", "image_id", "width"]
    ] * 2


def test_a_missing_training_file_names_the_command(tmp_path: Path, catalogs: None) -> None:
    register_lvis_ov(tmp_path, prefix="tiny_")
    with pytest.raises(FileNotFoundError, match=r"prepare_ov_lvis\.py"):
        DatasetCatalog.get("tiny_lvis_ov_train")
