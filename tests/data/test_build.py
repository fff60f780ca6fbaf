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
    crop_size_of,
)

RECORDS = [{"image_id": number} for number in range(5)]


def mapper(record: dict[str, object], rng: np.random.Generator) -> dict[str, object]:
    return {**record, "draw": int(rng.integers(1_000_000))}


def take(loader: object, batches: int) -> list[list[dict[str, object]]]:
    return list(itertools.islice(iter(loader), batches))


def test_every_epoch_visits_every_record_once() -> None:
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3)
    for epoch in range(3):
        seen = {data[epoch * 5 + position]["image_id"] for position in range(5)}
        assert seen == set(range(5))


def test_epochs_differ_in_order_and_draws() -> None:
    data = CountedDataset(records=RECORDS, mapper=mapper, seed=3)
    first, second = ([data[epoch * 5 + k] for k in range(5)] for epoch in range(2))
    assert [row["image_id"] for row in first] != [row["image_id"] for row in second]
    assert {row["draw"] for row in first}.isdisjoint({row["draw"] for row in second})


def test_a_sample_does_not_depend_on_what_came_before() -> None:
    one, other = (CountedDataset(records=RECORDS, mapper=mapper, seed=3) for _ in range(2))
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
    options = {"records": RECORDS, "mapper": mapper, "total_batch": 2, "seed": 9}
    whole = take(build_distill_train_loader(**options), 5)
    late = take(build_distill_train_loader(**options, start_iter=3), 2)
    assert late == whole[3:]


def test_workers_do_not_change_the_samples() -> None:
    options = {"records": RECORDS, "mapper": mapper, "total_batch": 2, "seed": 9}
    plain = take(build_distill_train_loader(**options), 4)
    assert take(build_distill_train_loader(**options, num_workers=1), 4) == plain


def test_an_empty_training_set_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN"):
        CountedDataset(records=[], mapper=mapper, seed=0)


def test_an_odd_batch_for_two_processes_names_its_key() -> None:
    with pytest.raises(ValueError, match=r"SOLVER\.IMS_PER_BATCH"):
        CountSampler(total_batch=3, world_size=2)


def test_the_config_builds_the_loader_of_the_training_images(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "INPUT.REGIONS.CROP_SIZE", 64)
    batch = next(iter(build_distill_train_loader_from_cfg(cfg)))
    assert len(batch) == 2
    assert batch[0]["image"].shape == (3, 144, 192)


def test_regions_are_loaded_once_each(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches")
    loader = build_region_test_loader_from_cfg(cfg, "emoji_panoptic_val")
    items = [item for batch in loader for item in batch]
    assert len({item["image_id"] for item in items}) == len(items) == 4
    assert all(item["masks"].shape[1:] == (18, 24) for item in items)
    assert all(item["crops"].shape[2:] == (64, 64) for item in items)


def test_crops_have_the_native_size_of_the_teacher(emoji_cfg) -> None:
    cfg = emoji_cfg("clipself_patches", "MODEL.REGIONCLIP.TEACHER_NAME", "RN50x4")
    assert crop_size_of(cfg) == 64
    cfg.INPUT.REGIONS.CROP_SIZE = 32
    assert crop_size_of(cfg) == 32
    cfg = emoji_cfg("regionclip", "MODEL.REGIONCLIP.TEACHER_NAME", "RN50x4")
    assert crop_size_of(cfg) == 288


def test_detectors_are_trained_on_jittered_pictures(emoji_cfg) -> None:
    overrides = ["INPUT.LSJ_SIZE", 64, "INPUT.LSJ_RANGE", [0.5, 1.0]]
    cfg = emoji_cfg("fvit_untouched", *overrides)
    batches = take(build_detection_train_loader_from_cfg(cfg), 4)
    longest = [max(item["image"].shape[1:]) for batch in batches for item in batch]
    assert [len(batch) for batch in batches] == [2] * 4
    assert 32 <= min(longest) < max(longest) <= 64


def test_a_detector_without_training_data_names_the_key(emoji_cfg) -> None:
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_detection_train_loader_from_cfg(emoji_cfg("rpn", "DATASETS.TRAIN", ()))
