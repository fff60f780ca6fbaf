import json
from collections.abc import Callable
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.apps.prepare.transfer import prepare_transfer
from clipself_d2.data.datasets.transfer import objects365_names, register_transfer
from clipself_d2.evaluation import build_evaluator

Write = Callable[..., Path]

OBJECT = """<object><name>{name}</name><difficult>{difficult}</difficult>
<part><name>head</name><bndbox><xmin>7</xmin><ymin>7</ymin><xmax>8</xmax><ymax>8</ymax></bndbox></part>
<bndbox><xmax>{box[2]}</xmax><xmin>{box[0]}</xmin><ymax>{box[3]}</ymax><ymin>{box[1]}</ymin></bndbox>
</object>"""


def annotation(*objects: dict) -> str:
    inner = "".join(OBJECT.format(**{"difficult": 0, **row}) for row in objects)
    return f"<annotation><size><width>40</width><height>30</height></size>{inner}</annotation>"


@pytest.fixture
def voc_root(tmp_path: Path, write_picture: Write) -> Path:
    """VOC2012 with two validation images: a whole-image sofa, and a difficult tvmonitor."""
    folder = tmp_path / "VOC2012"
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "val.txt").write_text("2008_000002\n2008_000003\n")
    (folder / "Annotations").mkdir()
    sofa = annotation({"name": "sofa", "box": (1, 1, 40, 30)})
    (folder / "Annotations" / "2008_000002.xml").write_text(sofa)
    screen = annotation({"name": "tvmonitor", "box": ("3.5", 4, 10, 11), "difficult": 1})
    (folder / "Annotations" / "2008_000003.xml").write_text(screen)
    for number in (2, 3):
        write_picture(folder / "JPEGImages" / f"2008_{number:06d}.jpg")
    return tmp_path


def test_voc_boxes_begin_at_zero_and_difficult_objects_are_crowds(
    voc_root: Path, catalogs: None
) -> None:
    assert [file.name for file in prepare_transfer(voc_root)] == ["ov_val.json"]
    register_transfer(voc_root, prefix="tiny_")
    names = MetadataCatalog.get("tiny_voc_ov_2012_val").thing_classes
    sofa, screen = DatasetCatalog.get("tiny_voc_ov_2012_val")
    (whole,), (hard,) = sofa["annotations"], screen["annotations"]
    assert sofa["image_id"] == 2008000002
    assert (names[whole["category_id"]], whole["bbox"], whole["iscrowd"]) == (
        "sofa",
        [0, 0, 40, 30],
        0,
    )
    assert (names[hard["category_id"]], hard["bbox"], hard["iscrowd"]) == (
        "tv monitor",
        [2.5, 3, 7.5, 8],
        1,
    )
    build_evaluator("tiny_voc_ov_2012_val", None)


def test_a_second_run_does_nothing(voc_root: Path) -> None:
    prepare_transfer(voc_root)
    assert prepare_transfer(voc_root) == []
    assert len(prepare_transfer(voc_root, force=True)) == 1


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("<annotation>", "ParseError"),
        ("<annotation/>", "lacks size/width"),
        (annotation({"name": "unicorn", "box": (1, 1, 2, 2)}), "unicorn"),
    ],
)
def test_a_faulty_xml_is_named(content: str, complaint: str, voc_root: Path) -> None:
    (voc_root / "VOC2012" / "Annotations" / "2008_000003.xml").write_text(content)
    with pytest.raises(ValueError, match=rf"2008_000003\.xml .*{complaint}"):
        prepare_transfer(voc_root)


def test_a_missing_xml_is_named(voc_root: Path) -> None:
    (voc_root / "VOC2012" / "Annotations" / "2008_000003.xml").unlink()
    with pytest.raises(FileNotFoundError, match=r"2008_000003\.xml is missing"):
        prepare_transfer(voc_root)


def test_a_root_without_any_set_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"VOC2007/ImageSets/Main/test\.txt"):
        prepare_transfer(tmp_path)


def write_objects365(root: Path, version: str, **changes: object) -> Path:
    """An official file with its categories in another order and under other ids."""
    names = list(objects365_names(version))
    document = {
        "images": [
            {"id": 7, "file_name": "images/v1/patch8/one.jpg", "width": 40, "height": 30},
            {
                "id": 8,
                "file_name": "images/v2/patch16/objects365_v2_00908726.jpg",
                "width": 40,
                "height": 30,
            },
        ],
        "annotations": [
            {"id": 0, "image_id": 8, "category_id": 1000, "bbox": [0, 0, 4, 5], "iscrowd": 0},
            {"id": 1, "image_id": 7, "category_id": 1037, "bbox": [0, 0, 4, 5], "iscrowd": 1},
        ],
        "categories": [
            {"id": 1000 + number, "name": f"{name} "} for number, name in enumerate(names)
        ][::-1],
        **changes,
    }
    name = {"v1": "objects365_val.json", "v2": "annotations/zhiyuan_objv2_val.json"}[version]
    file = root / f"objects365{version}" / name
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(document))
    return file


def test_objects365_v2_is_named_right_and_can_be_scored(
    tmp_path: Path, catalogs: None, write_picture: Write
) -> None:
    write_objects365(tmp_path, "v2")
    write_picture(tmp_path / "objects365v2" / "val" / "patch8" / "one.jpg")
    prepare_transfer(tmp_path)
    register_transfer(tmp_path, prefix="tiny_")
    (record,) = DatasetCatalog.get("tiny_objects365_v2_val")
    (row,) = record["annotations"]
    assert MetadataCatalog.get("tiny_objects365_v2_val").thing_classes[row["category_id"]] == (
        "Monitor/TV"
    )
    assert row["iscrowd"] == 1
    build_evaluator("tiny_objects365_v2_val", None)


def test_objects365_v1_images_lie_in_one_folder(
    tmp_path: Path, catalogs: None, write_picture: Write
) -> None:
    write_objects365(tmp_path, "v1")
    for name in ("one.jpg", "objects365_v2_00908726.jpg"):
        write_picture(tmp_path / "objects365v1" / "val" / name)
    prepare_transfer(tmp_path)
    register_transfer(tmp_path, prefix="tiny_")
    assert len(DatasetCatalog.get("tiny_objects365_v1_val")) == 2


@pytest.mark.parametrize(
    ("names", "complaint"),
    [(["Unicorn"], "'Unicorn', which is none of"), (["Camel", "Campel"], "comes twice among")],
)
def test_other_categories_are_refused(names: list[str], complaint: str, tmp_path: Path) -> None:
    rows = [{"id": number, "name": name} for number, name in enumerate(names)]
    write_objects365(tmp_path, "v2", categories=rows, annotations=[])
    with pytest.raises(ValueError, match=rf"zhiyuan_objv2_val\.json .*{complaint}"):
        prepare_transfer(tmp_path)
