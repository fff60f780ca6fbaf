import pytest

from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.data.referring_loader import (
    build_referring_test_loader_from_cfg,
    build_referring_train_loader_from_cfg,
    has_references,
)


@pytest.fixture
def cfg(emoji_cfg, emoji_root, catalogs):
    register_emoji_refer(emoji_root, prefix="tiny")
    return emoji_cfg("cris", "DATASETS.TRAIN", ("tiny_refer_train",), "INPUT.REFER_SIZE", 32)


def test_training_batches_have_masks_on_the_canvas(cfg):
    batch = next(iter(build_referring_train_loader_from_cfg(cfg)))
    assert len(batch) == cfg.SOLVER.IMS_PER_BATCH
    assert all(item["ref_mask"].shape == (32, 32) for item in batch)


def test_every_sentence_is_tested_once_images_in_a_row(cfg):
    loader = build_referring_test_loader_from_cfg(cfg, "tiny_refer_val")
    items = [item for batch in loader for item in batch]
    pairs = [(item["ref_id"], item["sentence"]) for item in items]
    assert len(set(pairs)) == len(pairs) > 4
    names = [item["file_name"] for item in items]
    assert names == sorted(names)
    assert max(len(batch) for batch in loader) == 16


def test_data_sets_tell_whether_they_hold_references(cfg):
    assert has_references(["tiny_refer_train", "tiny_refer_val"])
    assert not has_references(["tiny_refer_train", "emoji_ov_val"])
    assert not has_references([])


def test_an_empty_list_of_training_sets_names_the_key(cfg):
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_referring_train_loader_from_cfg(cfg)
