import json
import shutil
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.apps.analysis.region_alignment import AlignmentOptions, measure_alignment
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.data.build import build_region_test_loader_from_cfg
from clipself_d2.data.datasets.coco_panoptic import (
    listed_metadata,
    panoptic_metadata,
    register_coco_panoptic,
)
from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.distill_trainer import DistillTrainer

SAMPLE = Path(__file__).parents[2] / "golden" / "coco_panoptic_sample"
NAME = "sample_coco_2017_val_panoptic_regions"
CONFIG = Path(__file__).parents[3] / "configs" / "emoji" / "clipself_patches.yaml"


@pytest.fixture
def sample_root(tmp_path: Path) -> Path:
    """The shipped COCO sample in the official layout."""
    coco = tmp_path / "coco"
    shutil.copytree(SAMPLE / "input_images", coco / "val2017")
    shutil.copytree(SAMPLE / "panoptic_examples", coco / "annotations" / "panoptic_val2017")
    document = json.loads((SAMPLE / "panoptic_examples.json").read_text())
    document["categories"] = json.loads((SAMPLE / "panoptic_coco_categories.json").read_text())
    (coco / "annotations" / "panoptic_val2017.json").write_text(json.dumps(document))
    return tmp_path


def test_the_133_classes_are_those_of_the_official_list() -> None:
    rows = json.loads((SAMPLE / "panoptic_coco_categories.json").read_text())
    metadata = panoptic_metadata()
    assert metadata["thing_classes"] == [row["name"] for row in rows if row["isthing"]]
    assert metadata["stuff_classes"] == [row["name"] for row in rows if not row["isthing"]]
    numbers = {
        **metadata["thing_dataset_id_to_contiguous_id"],
        **metadata["stuff_dataset_id_to_contiguous_id"],
    }
    assert sorted(numbers.values()) == list(range(133))
    names = [*metadata["thing_classes"], *metadata["stuff_classes"]]
    assert all(names[numbers[row["id"]]] == row["name"] for row in rows)


def test_real_annotations_become_regions(sample_root: Path, catalogs: None) -> None:
    register_coco_panoptic(sample_root, prefix="sample_")
    metadata = MetadataCatalog.get(NAME)
    assert metadata.evaluator_type == "region_classification"
    assert len(metadata.novel_classes) == 17
    records = DatasetCatalog.get(NAME)
    document = json.loads((SAMPLE / "panoptic_examples.json").read_text())
    listed = {row["image_id"]: len(row["segments_info"]) for row in document["annotations"]}
    assert {r["image_id"]: len(r["segments_info"]) for r in records} == listed
    for record in records:
        for segment in record["segments_info"]:
            assert segment["isthing"] == (segment["category_id"] < 80)


def test_detectron2s_folder_of_pngs_serves_too(sample_root: Path, catalogs: None) -> None:
    coco = sample_root / "coco"
    (coco / "annotations" / "panoptic_val2017").rename(coco / "panoptic_val2017")
    register_coco_panoptic(sample_root, prefix="sample_")
    record = DatasetCatalog.get(NAME)[0]
    assert Path(record["pan_seg_file_name"]).parent == coco / "panoptic_val2017"


def test_a_missing_png_is_named(sample_root: Path, catalogs: None) -> None:
    (sample_root / "coco" / "annotations" / "panoptic_val2017" / "000000142238.png").unlink()
    register_coco_panoptic(sample_root, prefix="sample_")
    with pytest.raises(FileNotFoundError, match=r"000000142238\.png is missing; download COCO"):
        DatasetCatalog.get(NAME)


def test_a_file_says_its_classes_itself(sample_root, catalogs):
    coco = sample_root / "coco"
    file, maps = coco / "annotations" / "panoptic_val2017.json", coco / "annotations"
    name = f"panoptic:{file}:{maps / 'panoptic_val2017'}:{coco / 'val2017'}"
    resolve_dataset_names([name])
    records, metadata = DatasetCatalog.get(name), MetadataCatalog.get(name)
    classes = [*metadata.thing_classes, *metadata.stuff_classes]
    by_id = {row["id"]: row for row in json.loads(file.read_text())["categories"]}
    truth = json.loads(file.read_text())["annotations"]
    for record, row in zip(records, truth, strict=True):
        for segment, given in zip(record["segments_info"], row["segments_info"], strict=True):
            assert classes[segment["category_id"]] == by_id[given["category_id"]]["name"]
    assert metadata.evaluator_type == "ov_panoptic"


def test_names_between_commas_are_a_name_and_synonyms():
    rows = [
        {"id": 5, "name": "screen, silver screen", "isthing": 1},
        {"id": 2, "name": "wall", "isthing": 0},
        {"id": 9, "name": "screen, CRT screen", "isthing": 1},
        {"id": 7, "name": "door, double door", "isthing": 1},
    ]
    got = listed_metadata(rows)
    assert got["thing_classes"] == ["screen, silver screen", "door", "screen, CRT screen"]
    assert got["stuff_classes"] == ["wall"]
    assert got["class_synonyms"][1] == ["double door"]
    assert got["stuff_dataset_id_to_contiguous_id"] == {2: 3}


@pytest.fixture
def registered(sample_root: Path, catalogs: None) -> None:
    register_coco_panoptic(sample_root, prefix="sample_")


def config(tmp_path: Path) -> CfgNode:
    cfg = load_config(str(CONFIG), [])
    cfg.merge_from_list(["DATASETS.TEST", (NAME,), "OUTPUT_DIR", str(tmp_path / "out")])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "MODEL.CLIP.PRECISION", "fp32"])
    return cfg


def test_the_regions_are_those_of_the_json(registered, tmp_path: Path) -> None:
    document = json.loads((SAMPLE / "panoptic_examples.json").read_text())
    loader = build_region_test_loader_from_cfg(config(tmp_path), NAME)
    for (item,), row in zip(loader, document["annotations"], strict=True):
        fitting = []
        for segment in row["segments_info"]:
            x, y, width, height = segment["bbox"]
            stuff = segment["category_id"] > 91
            area = (width - 1) * (height - 1) if stuff else width * height
            if 64 <= area <= 1024**2:
                fitting.append(stuff)
        assert item["region_is_thing"].tolist() == [not stuff for stuff in fitting]
        assert item["image"].shape[1] != item["image"].shape[2]
        longest = max(item["masks"].shape[1:])
        assert longest == 192 // 8
        assert item["masks"].flatten(1).any(1).all()


def test_133_classes_are_scored_on_real_pictures(registered, tmp_path: Path) -> None:
    cfg = config(tmp_path)
    distiller = DistillTrainer.build_model(cfg).eval()
    results = DistillTrainer.test(cfg, distiller)["region"]
    for kind in ("roi", "crop", "mask"):
        for group in ("thing", "stuff"):
            assert 0 <= results[f"{kind}.{group}.macc1"] <= results[f"{kind}.{group}.macc5"] <= 100


@pytest.mark.parametrize("pad_to_square", [True, False])
def test_no_figure_depends_on_the_batch(registered, pad_to_square: bool) -> None:
    metadata = MetadataCatalog.get(NAME)
    assert (len(metadata.thing_classes), len(metadata.stuff_classes)) == (80, 53)
    spec = TowerSpec.parse("ViT-Ti-8-emoji:emoji")
    rows = [
        measure_alignment(
            NAME,
            [spec],
            AlignmentOptions(
                sizes=(96,),
                batch_size=size,
                pad_to_square=pad_to_square,
                templates="single",
                device="cpu",
            ),
        )
        for size in (1, 2)
    ]
    assert rows[0] == rows[1]
    assert {row.split for row in rows[0]} == {"thing", "stuff", "thing.novel", "thing.base"}
    # Of 133 classes the emoji CLIP knows a few; a figure that is always 0 would prove nothing.
    assert max(row.macc5 for row in rows[0]) > 0
