import math
from dataclasses import replace

import pytest
import torch
from detectron2.data import get_detection_dataset_dicts

from clipself_d2.apps.analysis.region_alignment import (
    AlignmentOptions,
    embed_crops,
    embed_dense,
    measure_alignment,
    prepare_pixels,
)
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.clip import load_tower
from clipself_d2.data.region_mapper import RegionMapper
from clipself_d2.engine.distill_trainer import DistillTrainer

DATASET = "emoji_panoptic_val"
SPEC = TowerSpec.parse("one=ViT-Ti-8-emoji:emoji")
OPTIONS = AlignmentOptions(sizes=(64,), device="cpu")


@pytest.fixture(scope="module")
def tower():
    return load_tower("ViT-Ti-8-emoji", "emoji")


@pytest.fixture
def items(emoji_data) -> list[dict]:
    """Regions of three scenes, the last cut to an upright shape."""
    mapper = RegionMapper(image_size=96, crop_size=64, patch_size=8, pad_to_square=False)
    records = get_detection_dataset_dicts([DATASET], filter_empty=False, check_consistency=False)
    found = [mapper(record) for record in records[:3]]
    found[2]["image"] = found[2]["image"][:, :, :40]
    found[2]["masks"] = found[2]["masks"][:, :, :5]
    return found


def test_figures_are_those_of_the_distillers_evaluation(emoji_cfg) -> None:
    cfg = emoji_cfg(
        "clipself_patches", "MODEL.CLIP.PRETRAINED", "emoji", "DATASETS.TEST", (DATASET,)
    )
    cfg.INPUT.REGIONS.IMAGE_SIZES = (96,)
    expected = DistillTrainer.test(cfg, DistillTrainer.build_model(cfg).eval())["region"]
    rows = measure_alignment(
        DATASET, [SPEC], replace(OPTIONS, sizes=(96,), pad_to_square=False, batch_size=3)
    )
    rows = [row for row in rows if row.form != "attention"]
    found = {f"{row.embedding}.{row.split}.macc1": row.macc1 for row in rows}
    found |= {f"{row.embedding}.{row.split}.macc5": row.macc5 for row in rows}
    assert found == {key: expected[key] for key in found}
    assert {"roi.thing.macc1", "mask.stuff.macc5", "crop.thing.macc1"} <= set(found)
    assert found["crop.thing.macc1"] > 50


def test_no_embedding_depends_on_the_batch(tower, items) -> None:
    together = embed_dense(tower, items, form="attention")
    crops = embed_crops(tower, items)
    for item, dense, crop in zip(items, together, crops, strict=True):
        (alone,) = embed_dense(tower, [item], form="attention")
        (crop_alone,) = embed_crops(tower, [item])
        torch.testing.assert_close(dense["roi"], alone["roi"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(dense["mask"], alone["mask"], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(crop["crop"], crop_alone["crop"], atol=1e-5, rtol=1e-4)


def test_a_picture_of_one_patch_has_one_embedding(tower) -> None:
    image = torch.arange(3 * 64, dtype=torch.uint8).reshape(3, 8, 8)
    item = {
        "image": image,
        "boxes": torch.tensor([[0.0, 0.0, 8.0, 8.0], [1.0, 2.0, 7.0, 5.0]]),
        "masks": torch.ones(1, 1, 1, dtype=torch.bool),
    }
    pixels = prepare_pixels(tower, [image], 8, 8)
    for strategy in ("clipself", "attention"):
        cell = tower.forward_dense(pixels, form=strategy).embedding[0, :, 0, 0]
        (output,) = embed_dense(tower, [item], form=strategy)
        for row in (*output["roi"], *output["mask"]):
            torch.testing.assert_close(row, cell.detach(), atol=1e-5, rtol=1e-4)


def test_pixels_are_padded_black_and_then_normalised(tower) -> None:
    image = torch.full((3, 4, 6), 255, dtype=torch.uint8)
    pixels = prepare_pixels(tower, [image], 4, 9)[0]
    assert pixels.shape == (3, 8, 16)
    mean, std = torch.tensor(tower.pixel_mean), torch.tensor(tower.pixel_std)
    torch.testing.assert_close(pixels[:, 3, 5], (255 - mean) / std)
    torch.testing.assert_close(pixels[:, 4, 5], -mean / std)
    torch.testing.assert_close(pixels[:, 3, 6], -mean / std)


def test_rows_name_towers_sizes_and_strategies(emoji_data) -> None:
    other = replace(SPEC, label="two")
    rows = measure_alignment(DATASET, [SPEC, other], replace(OPTIONS, sizes=(64, 40), limit=2))
    things = [row for row in rows if row.split == "thing"]
    one = [(row.embedding, row.form, row.size) for row in things if row.tower == "one"]
    dense = [
        (embedding, strategy, size)
        for size in (64, 40)
        for strategy in ("clipself", "attention")
        for embedding in ("roi", "mask")
    ]
    assert one == [("crop", "", 64), *dense]
    assert {row.images for row in rows} == {2}
    # A tower is measured alike whatever its label.
    first, second = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    assert [row._replace(tower="two") for row in first] == second or any(
        math.isnan(row.macc1) for row in first
    )


def test_square_padding_changes_the_dense_features_alone(tower, items) -> None:
    item = items[0]
    masks = torch.zeros(len(item["masks"]), 12, 12, dtype=torch.bool)
    masks[:, : item["masks"].shape[1]] = item["masks"]
    (square,) = embed_dense(tower, [{**item, "masks": masks}], form="clipself", square_size=96)
    (plain,) = embed_dense(tower, [item], form="clipself")
    assert not torch.allclose(square["roi"], plain["roi"], atol=1e-2)
    assert square["mask"].shape == plain["mask"].shape


def test_pictures_without_regions_pass(tower, items) -> None:
    item = items[0]
    bare = {**item, "boxes": item["boxes"][:0], "masks": item["masks"][:0]}
    bare["crops"] = item["crops"][:0]
    (dense,) = embed_dense(tower, [bare], form="clipself")
    (crop,) = embed_crops(tower, [bare])
    width = tower.embed_dim
    assert dense["roi"].shape == dense["mask"].shape == crop["crop"].shape == (0, width)


@pytest.mark.parametrize("name", ["coco_of_mars", "emoji_ov_val"])
def test_another_data_set_is_refused_with_those_that_fit(emoji_data, name: str) -> None:
    with pytest.raises(ValueError, match=f"--dataset {name} is not .*{DATASET}"):
        measure_alignment(name, [SPEC], OPTIONS)


def test_towers_need_labels_of_their_own(emoji_data) -> None:
    with pytest.raises(ValueError, match=r"share a label .*write \[LABEL=\]"):
        measure_alignment(DATASET, [SPEC, SPEC], OPTIONS)


@pytest.mark.parametrize("changes", [{"sizes": (96, 0)}, {"limit": -1}, {"batch_size": 0}])
def test_numbers_out_of_range_name_their_flag(changes: dict) -> None:
    with pytest.raises(ValueError, match="--sizes and --batch-size are positive, --limit is 0"):
        replace(OPTIONS, **changes)
