import pytest
from detectron2.modeling import build_model

from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.data.referring_loader import (
    ImageBatchSampler,
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


def test_every_sentence_is_tested_once_and_no_image_is_torn_apart(cfg):
    batches = list(build_referring_test_loader_from_cfg(cfg, "tiny_refer_val"))
    items = [item for batch in batches for item in batch]
    pairs = [(item["ref_id"], item["sentence"]) for item in items]
    assert len(set(pairs)) == len(pairs) > 4
    images = [{item["file_name"] for item in batch} for batch in batches]
    assert sum(len(names) for names in images) == len(set().union(*images)) == 4


def test_the_model_encodes_every_image_once(cfg):
    small = ["MODEL.CRIS.FPN_OUT", [8, 16, 32], "MODEL.CRIS.NUM_LAYERS", 0]
    cfg.merge_from_list(small)
    model = build_model(cfg).eval()
    counts = []
    model.backbone.register_forward_pre_hook(lambda _, args: counts.append(len(args[0])))
    num_pairs = 0
    for batch in build_referring_test_loader_from_cfg(cfg, "tiny_refer_val"):
        num_pairs += len(model(batch))
    assert sum(counts) == 4 < num_pairs


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
@pytest.mark.parametrize("sizes", [(5, 1, 2, 9, 3), (1, 1), (20,), (3, 3, 3, 3, 3, 3, 3, 3)])
def test_processes_share_the_images_without_gaps_or_repetition(sizes, world_size):
    images = [number for number, size in enumerate(sizes) for _ in range(size)]
    found = []
    for rank in range(world_size):
        sampler = ImageBatchSampler(images, 4, rank=rank, world_size=world_size)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        for batch in batches:
            assert len(batch) <= max(4, sizes[images[batch[0]]])
        found += batches
    assert sorted(number for batch in found for number in batch) == list(range(len(images)))
    owners = [{images[number] for number in batch} for batch in found]
    assert sum(len(names) for names in owners) == len(sizes)


def test_small_images_share_a_batch():
    assert list(ImageBatchSampler("aabcccdd", 4)) == [[0, 1, 2], [3, 4, 5], [6, 7]]
    assert list(ImageBatchSampler("aabbc", 4)) == [[0, 1, 2, 3], [4]]


def test_data_sets_tell_whether_they_hold_references(cfg):
    assert has_references(["tiny_refer_train", "tiny_refer_val"])
    assert not has_references(["tiny_refer_train", "emoji_ov_val"])
    assert not has_references([])


def test_an_empty_list_of_training_sets_names_the_key(cfg):
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"DATASETS\.TRAIN is empty"):
        build_referring_train_loader_from_cfg(cfg)
