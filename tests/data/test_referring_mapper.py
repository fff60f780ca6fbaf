import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from PIL import Image
from pycocotools import mask as coco_mask

from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.data.referring_mapper import ReferringMapper, decode_segmentations

SQUARE = [2, 2, 12, 2, 12, 12, 2, 12]
OTHER = [7, 7, 17, 7, 17, 17, 7, 17]


def mapper(*, is_train):
    return ReferringMapper(is_train=is_train, size=40, border=(100.0, 100.0, 100.0))


@pytest.fixture
def record(tmp_path, rng):
    path = tmp_path / "a.png"
    Image.fromarray(rng.integers(0, 256, (20, 40, 3), np.uint8)).save(path)
    return {
        "file_name": str(path),
        "image_id": 1,
        "ref_id": 2,
        "height": 20,
        "width": 40,
        "sentences": ["a", "b", "c"],
        "segmentations": [[SQUARE]],
    }


def test_polygons_that_overlap_count_once():
    both = decode_segmentations([[SQUARE, OTHER]], 20, 20)
    single = decode_segmentations([[SQUARE]], 20, 20) | decode_segmentations([[OTHER]], 20, 20)
    assert both.dtype == np.bool_
    assert np.array_equal(both, single)
    assert both.sum() == 175
    assert np.array_equal(decode_segmentations([[SQUARE], [OTHER]], 20, 20), both)


def test_run_lengths_are_read_compressed_and_not():
    mask = np.zeros((4, 6), np.uint8)
    mask[1:3, 2:5] = 1
    compressed = coco_mask.encode(np.asfortranarray(mask))
    text = {"size": [4, 6], "counts": compressed["counts"].decode()}
    runs = {"size": [4, 6], "counts": [9, 2, 2, 2, 2, 2, 5]}
    for code in (compressed, text, runs):
        assert np.array_equal(decode_segmentations([code], 4, 6), mask.astype(bool))


def test_no_object_gives_an_empty_mask():
    assert not decode_segmentations([], 3, 5).any()


def test_training_item_lies_on_the_canvas(record):
    item = mapper(is_train=True)(record)
    assert item["image"].shape == (3, 40, 40)
    assert item["image"].dtype == torch.uint8
    assert (item["image"][:, :9] == 100).all()
    picture = np.asarray(Image.open(record["file_name"])).transpose(2, 0, 1)
    assert torch.equal(item["image"][:, 10:30], torch.from_numpy(picture.copy()))
    mask = decode_segmentations(record["segmentations"], 20, 40)
    assert np.array_equal(item["ref_mask"][10:30].numpy() > 0.5, mask)
    assert "gt_mask" not in item


def test_training_draws_every_sentence_and_testing_its_own(record):
    train, test = mapper(is_train=True), mapper(is_train=False)
    np.random.seed(0)
    assert {train(record)["sentence"] for _ in range(30)} == {"a", "b", "c"}
    single = {key: value for key, value in record.items() if key != "sentences"}
    item = test({**single, "sentence": "the dog"})
    assert item["sentence"] == "the dog"
    assert item["gt_mask"].shape == (20, 40)
    assert item["gt_mask"].dtype == torch.bool


def test_testing_reads_an_image_of_several_sentences_once(record):
    test, train = mapper(is_train=False), mapper(is_train=True)
    assert test(record)["image"] is test(record)["image"]
    assert train(record)["image"] is not train(record)["image"]


def test_config_sets_size_and_border(emoji_cfg, emoji_root, catalogs):
    register_emoji_refer(emoji_root, prefix="tiny")
    cfg = emoji_cfg("cris", "INPUT.REFER_SIZE", 96)
    item = ReferringMapper(cfg, is_train=True)(DatasetCatalog.get("tiny_refer_train")[0])
    assert item["image"].shape == (3, 96, 96)
    assert item["image"][:, 0, 0].tolist() == [round(value) for value in cfg.MODEL.PIXEL_MEAN]
    assert 0 < item["ref_mask"].sum() < 96 * 96


def test_a_picture_of_another_size_is_named(record):
    with pytest.raises(ValueError, match=r"a\.png has 20 x 40 px, the annotations say 21 x 40"):
        mapper(is_train=True)({**record, "height": 21})
