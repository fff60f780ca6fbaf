import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.apps.analysis.region_alignment import AlignmentOptions, measure_alignment
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.clip import load_clip
from clipself_d2.data.build import build_region_test_loader_from_cfg
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.distill_trainer import DistillTrainer

SAMPLE = Path(__file__).parents[1] / "golden" / "coco_panoptic_sample"
NAME = "coco_panoptic_sample"
CONFIG = Path(__file__).parents[2] / "configs" / "emoji" / "clipself_patches.yaml"


@pytest.fixture
def document() -> dict:
    return json.loads((SAMPLE / "panoptic_examples.json").read_text())


@pytest.fixture
def registered(document: dict) -> Iterator[None]:
    categories = json.loads((SAMPLE / "panoptic_coco_categories.json").read_text())
    things = [row for row in categories if row["isthing"]]
    stuff = [row for row in categories if not row["isthing"]]
    contiguous = {row["id"]: number for number, row in enumerate([*things, *stuff])}
    isthing = {row["id"]: bool(row["isthing"]) for row in categories}
    images = {image["id"]: image for image in document["images"]}

    def load() -> list[dict]:
        return [
            {
                "file_name": str(SAMPLE / "input_images" / images[row["image_id"]]["file_name"]),
                "pan_seg_file_name": str(SAMPLE / "panoptic_examples" / row["file_name"]),
                "image_id": row["image_id"],
                "segments_info": [
                    {
                        **segment,
                        "isthing": isthing[segment["category_id"]],
                        "category_id": contiguous[segment["category_id"]],
                    }
                    for segment in row["segments_info"]
                ],
            }
            for row in document["annotations"]
        ]

    DatasetCatalog.register(NAME, load)
    MetadataCatalog.get(NAME).set(
        thing_classes=[row["name"] for row in things],
        stuff_classes=[row["name"] for row in stuff],
        evaluator_type="region_classification",
    )
    yield
    DatasetCatalog.remove(NAME)
    MetadataCatalog.remove(NAME)


def config(tmp_path: Path):
    cfg = load_config(str(CONFIG), [])
    cfg.merge_from_list(["DATASETS.TEST", (NAME,), "OUTPUT_DIR", str(tmp_path)])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "MODEL.CLIP.PRECISION", "fp32"])
    return cfg


def test_the_regions_are_those_of_the_json(registered, document: dict, tmp_path: Path) -> None:
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
    assert {row.split for row in rows[0]} == {"thing", "stuff"}
    # Of 133 classes the emoji CLIP knows a few; a figure that is always 0 would prove nothing.
    assert max(row.macc5 for row in rows[0]) > 0


def test_the_whole_picture_as_a_region_is_its_mean_cell() -> None:
    from clipself_d2.layers import roi_embeddings

    tower = load_clip("ViT-Ti-8-emoji", "emoji").tower
    with torch.no_grad():
        dense = tower.forward_dense(torch.randn(1, 3, 64, 96)).embedding
    pooled = roi_embeddings(dense, [torch.tensor([[0.0, 0.0, 96.0, 64.0]])], 8, normalize=False)
    torch.testing.assert_close(pooled, dense.mean((2, 3)), atol=1e-5, rtol=1e-5)
