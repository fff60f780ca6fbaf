import itertools
import json

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import build as detectron2_build
from detectron2.utils import comm
from PIL import Image

from clipself_d2.data import build
from clipself_d2.data.build import (
    build_detection_test_loader_from_cfg,
    build_detection_train_loader_from_cfg,
    build_distill_train_loader_from_cfg,
    build_region_test_loader_from_cfg,
)
from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.engine.cli import load_config


def take(loader: object, batches: int) -> list[list[dict[str, object]]]:
    return list(itertools.islice(iter(loader), batches))


def test_the_config_builds_the_loader_of_the_training_images(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches")
    batch = next(iter(build_distill_train_loader_from_cfg(cfg)))
    assert len(batch) == 2
    assert batch[0]["image"].shape == (3, 72, 96)
    # The native size of the teacher.
    assert batch[0]["crops"].shape[1:] == (3, 64, 64)


def test_crops_are_left_as_they_are_cut_for_another_device(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "MODEL.DEVICE", "cuda")
    crops = next(iter(build_distill_train_loader_from_cfg(cfg)))[0]["crops"]
    assert isinstance(crops, list)
    assert len({crop.shape for crop in crops}) > 1


@pytest.fixture
def captioned_cfg(emoji_cfg, emoji_data, catalogs):
    """Config of RegionCLIP on the captioned training scenes of the tiny folder."""
    folder = emoji_data / "emoji"
    name = f"captions:{folder}/annotations/captions_train.json:{folder}/train"
    resolve_dataset_names([name])
    return emoji_cfg("regionclip", "DATASETS.TRAIN", (name,), "INPUT.REGIONS.SOURCE", "grid")


def test_pictures_with_captions_are_mapped_with_them(captioned_cfg) -> None:
    cfg = captioned_cfg
    item = next(iter(build_distill_train_loader_from_cfg(cfg)))[0]
    assert {"caption", "boxes", "crops"} <= item.keys()
    cfg.INPUT.REGIONS.SOURCE = "rpn"
    item = next(iter(build_distill_train_loader_from_cfg(cfg)))[0]
    assert "caption" in item
    assert not {"boxes", "crops"} & item.keys()


def test_crops_have_the_native_size_of_regionclips_teacher(captioned_cfg) -> None:
    captioned_cfg.MODEL.REGIONCLIP.TEACHER_NAME = "ViT-B-16-plus-240"
    crops = next(iter(build_distill_train_loader_from_cfg(captioned_cfg)))[0]["crops"]
    assert crops.shape[1:] == (3, 240, 240)


def test_regions_are_scored_at_the_largest_size(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "INPUT.REGIONS.IMAGE_SIZES", (64, 96, 80))
    loader = build_region_test_loader_from_cfg(cfg, "emoji_panoptic_val")
    assert max(next(iter(loader))[0]["image"].shape) == 96


def test_regions_are_loaded_once_each(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches")
    loader = build_region_test_loader_from_cfg(cfg, "emoji_panoptic_val")
    items = [item for batch in loader for item in batch]
    assert len({item["image_id"] for item in items}) == len(items) == 4
    assert all(item["masks"].shape[1:] == (9, 12) for item in items)
    assert all(item["crops"].shape[2:] == (64, 64) for item in items)


def test_detectors_are_trained_on_jittered_pictures(emoji_cfg) -> None:
    cfg = emoji_cfg("fvit_untouched", "INPUT.LSJ_SIZE", 64)
    batches = take(build_detection_train_loader_from_cfg(cfg), 8)
    longest = [max(item["image"].shape[1:]) for batch in batches for item in batch]
    assert [len(batch) for batch in batches] == [2] * 8
    assert 6 <= min(longest) < max(longest) == 64


def test_a_detector_without_training_data_names_the_key(emoji_cfg) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_detection_train_loader_from_cfg(emoji_cfg("rpn", "DATASETS.TRAIN", ()))


def at(loader, start_iter: int):
    loader.batch_sampler.start_iter = start_iter
    return loader


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_a_detectors_samples_depend_on_seed_and_iteration_alone(emoji_cfg, sampler) -> None:
    keys = ("INPUT.LSJ_SIZE", 64, "DATALOADER.SAMPLER_TRAIN", sampler)
    cfg = emoji_cfg("fvit_untouched", *keys)
    whole = take(build_detection_train_loader_from_cfg(cfg), 12)
    np.random.seed(5)
    late = take(at(build_detection_train_loader_from_cfg(cfg), 9), 3)
    cfg.DATALOADER.NUM_WORKERS = 1
    worked = take(build_detection_train_loader_from_cfg(cfg), 12)
    assert len({item["image"].sum().item() for batch in whole for item in batch}) > 20
    pairs = zip(itertools.chain(*whole[9:], *whole), itertools.chain(*late, *worked), strict=True)
    for ours, theirs in pairs:
        assert ours["file_name"] == theirs["file_name"]
        assert torch.equal(ours["image"], theirs["image"])
        assert torch.equal(ours["instances"].gt_boxes.tensor, theirs["instances"].gt_boxes.tensor)
    cfg.SEED = 8
    other = take(build_detection_train_loader_from_cfg(cfg), 12)
    names = [[item["file_name"] for batch in run for item in batch] for run in (whole, other)]
    assert names[0] != names[1]


def test_two_processes_train_on_the_pictures_of_one(emoji_cfg, monkeypatch) -> None:
    cfg = emoji_cfg("fvit_untouched", "INPUT.LSJ_SIZE", 64, "SOLVER.IMS_PER_BATCH", 4)
    (whole,) = take(build_detection_train_loader_from_cfg(cfg), 1)
    monkeypatch.setattr(comm, "get_world_size", lambda: 2)
    monkeypatch.setattr(comm, "shared_random_seed", lambda: np.random.randint(2**31))
    shares = []
    for rank in range(2):
        monkeypatch.setattr(comm, "get_rank", lambda rank=rank: rank)
        shares += take(build_detection_train_loader_from_cfg(cfg), 1)
    assert [len(share) for share in shares] == [2, 2]
    for share, own in zip(shares, (whole[0::2], whole[1::2]), strict=True):
        for ours, theirs in zip(own, share, strict=True):
            assert torch.equal(ours["image"], theirs["image"])


def test_upright_and_broad_pictures_are_not_trained_together(coco_root, catalogs) -> None:
    file = coco_root / "coco" / "annotations" / "instances_train2017.json"
    content = json.loads(file.read_text())
    for row in content["images"][::2]:
        row["width"], row["height"] = 30, 40
        Image.new("RGB", (30, 40)).save(coco_root / "coco" / "train2017" / row["file_name"])
    file.write_text(json.dumps(content))
    name = f"coco_json:{file}:{coco_root}/coco/train2017"
    resolve_dataset_names([name])
    cfg = load_config("", ["DATASETS.TRAIN", (name,), "SOLVER.IMS_PER_BATCH", 2])
    cfg.merge_from_list(["DATALOADER.NUM_WORKERS", 0, "SEED", 1])
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    batches = take(build_detection_train_loader_from_cfg(cfg), 12)
    shapes = [{item["width"] > item["height"] for item in batch} for batch in batches]
    assert all(len(shape) == 1 for shape in shapes)
    assert len(set(map(frozenset, shapes))) == 2


def test_pictures_of_one_size_are_tested_together_and_each_once(emoji_cfg, monkeypatch) -> None:
    cfg = emoji_cfg("fvit_untouched", "TEST.IMS_PER_BATCH", 2)
    name = "emoji_ov_val"
    alone = [
        item["image_id"] for [item] in build_detection_test_loader_from_cfg(cfg, name, batch_size=1)
    ]
    sizes = {number: (96 + number % 2, 96) for number in alone}
    records = [
        {**record, "width": sizes[record["image_id"]][0]} for record in DatasetCatalog.get(name)
    ]
    del records[-1]["width"]
    monkeypatch.setattr(
        detectron2_build, "get_detection_dataset_dicts", lambda *_args, **_options: records
    )
    monkeypatch.setattr(build.PictureMapper, "__call__", lambda _self, record: record)
    batches = list(build_detection_test_loader_from_cfg(cfg, name))
    assert sorted(item["image_id"] for batch in batches for item in batch) == sorted(alone)
    assert max(map(len, batches)) == 2
    assert all(len({item.get("width") for item in batch}) == 1 for batch in batches)
