import itertools

import numpy as np
import pytest

from clipself_d2.data.build import (
    CountedDataset,
    CountSampler,
    build_detection_train_loader_from_cfg,
    build_distill_train_loader,
    build_distill_train_loader_from_cfg,
    build_region_test_loader_from_cfg,
)
from clipself_d2.data.datasets.custom import resolve_dataset_names

RECORDS = [{"image_id": number} for number in range(5)]


def mapper(
    record: dict[str, object], rng: np.random.Generator, image_size: int
) -> dict[str, object]:
    return {**record, "draw": int(rng.integers(1_000_000)), "size": image_size}


def take(loader: object, batches: int) -> list[list[dict[str, object]]]:
    return list(itertools.islice(iter(loader), batches))


def test_every_epoch_visits_every_record_once() -> None:
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,))
    for epoch in range(3):
        seen = {data[epoch * 5 + position]["image_id"] for position in range(5)}
        assert seen == set(range(5))


def test_epochs_differ_in_order_and_draws() -> None:
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,))
    first, second = ([data[epoch * 5 + k] for k in range(5)] for epoch in range(2))
    assert [row["image_id"] for row in first] != [row["image_id"] for row in second]
    assert {row["draw"] for row in first}.isdisjoint({row["draw"] for row in second})


def test_a_sample_does_not_depend_on_what_came_before() -> None:
    one, other = (
        CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,)) for _ in range(2)
    )
    ahead = [one[count] for count in range(12)]
    assert other[11] == ahead[11]
    assert other[2] == ahead[2]


def test_two_processes_share_the_batch_of_one() -> None:
    whole = itertools.islice(iter(CountSampler(total_batch=4)), 8)
    parts = [
        list(itertools.islice(iter(CountSampler(total_batch=4, rank=rank, world_size=2)), 4))
        for rank in (0, 1)
    ]
    assert sorted(parts[0][:2] + parts[1][:2]) == [0, 1, 2, 3]
    assert sorted(parts[0] + parts[1]) == sorted(whole)


def test_a_resumed_loader_goes_on_where_the_first_stopped() -> None:
    options = {"records": RECORDS, "mapper": mapper, "total_batch": 2, "seed": 9, "sizes": (64, 96)}
    whole = take(build_distill_train_loader(**options), 5)
    late = take(build_distill_train_loader(**options, start_iter=3), 2)
    assert late == whole[3:]


def test_workers_do_not_change_the_samples() -> None:
    options = {"records": RECORDS, "mapper": mapper, "total_batch": 2, "seed": 9, "sizes": (64, 96)}
    plain = take(build_distill_train_loader(**options), 4)
    assert take(build_distill_train_loader(**options, num_workers=1), 4) == plain


def test_an_odd_batch_for_two_processes_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH"):
        CountSampler(total_batch=3, world_size=2)


def test_the_config_builds_the_loader_of_the_training_images(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches")
    batch = next(iter(build_distill_train_loader_from_cfg(cfg)))
    assert len(batch) == 2
    assert batch[0]["image"].shape == (3, 144, 192)
    # The native size of the teacher.
    assert batch[0]["crops"].shape[1:] == (3, 64, 64)


def test_crops_are_left_as_they_are_cut_for_another_device(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "MODEL.DEVICE", "cuda")
    crops = next(iter(build_distill_train_loader_from_cfg(cfg)))[0]["crops"]
    assert isinstance(crops, list)
    assert len({crop.shape for crop in crops}) > 1


def test_a_size_alone_is_not_drawn(monkeypatch) -> None:
    drawn = []
    make = np.random.default_rng
    monkeypatch.setattr(np.random, "default_rng", lambda seed: drawn.append(seed) or make(seed))
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3, sizes=(64,))
    assert data[2]["size"] == 64
    assert drawn == [[3, 0, 1], [3, 2]]


def test_an_iteration_has_one_size() -> None:
    options = {"records": RECORDS, "mapper": mapper, "seed": 3, "total_batch": 4}
    data = CountedDataset(**options, sizes=(64, 96, 128))
    sizes = [{data[4 * step + k]["size"] for k in range(4)} for step in range(20)]
    assert all(len(found) == 1 for found in sizes)
    assert set.union(*sizes) == {64, 96, 128}


def test_no_size_names_the_key(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "INPUT.REGIONS.IMAGE_SIZES", ())
    with pytest.raises(ValueError, match=r"INPUT\.REGIONS\.IMAGE_SIZES is \(\)"):
        build_distill_train_loader_from_cfg(cfg)


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
    assert all(item["masks"].shape[1:] == (18, 24) for item in items)
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
