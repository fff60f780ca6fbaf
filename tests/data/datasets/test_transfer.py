from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.data.datasets.transfer import objects365_names, plain_name, register_transfer
from clipself_d2.evaluation import build_evaluator
from clipself_d2.vocabulary import Vocabulary


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_objects365_has_365_names_that_differ(version: str) -> None:
    names = objects365_names(version)
    assert len(names) == 365
    assert len({plain_name(name) for name in names.values()}) == 365
    spaced = [name for name in names.values() if name != " ".join(name.split())]
    assert not spaced


def test_misspelt_names_are_set_right() -> None:
    names = objects365_names("v2")
    assert names["Moniter/TV"] == "Monitor/TV"
    assert names["Campel"] == "Camel"
    assert names["Street Lights"] == "Street Lights"
    assert list(names)[:3] == ["Person", "Sneakers", "Chair"]
    assert list(objects365_names("v1"))[:3] == ["person", "sneakers", "chair"]


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("coco_80_val", 80),
        ("voc_ov_2007_test", 20),
        ("voc_ov_2012_val", 20),
        ("objects365_v1_val", 365),
        ("objects365_v2_val", 365),
    ],
)
def test_every_class_of_a_transfer_set_counts_as_base(name: str, size: int) -> None:
    metadata = MetadataCatalog.get(name)
    vocabulary = Vocabulary.from_metadata(metadata)
    assert vocabulary.num_classes == size
    assert vocabulary.novel_names == ()
    assert metadata.evaluator_type == "coco_ov"


def test_all_80_classes_of_coco_are_read(coco_root: Path, catalogs: None) -> None:
    register_transfer(coco_root, prefix="tiny_")
    names = MetadataCatalog.get("tiny_coco_80_val").thing_classes
    records = DatasetCatalog.get("tiny_coco_80_val")
    shown = [[names[row["category_id"]] for row in record["annotations"]] for record in records]
    assert shown == [["dog"], ["teddy bear"], ["zebra"]]
    build_evaluator("tiny_coco_80_val", None)


def test_an_unprepared_set_names_the_command(tmp_path: Path, catalogs: None) -> None:
    register_transfer(tmp_path, prefix="tiny_")
    for name in ("voc_ov_2012_val", "objects365_v2_val"):
        with pytest.raises(FileNotFoundError, match=r"prepare_transfer\.py"):
            DatasetCatalog.get(f"tiny_{name}")
