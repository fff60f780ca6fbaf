import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from clipself_d2.data.datasets import register_captions, resolve_dataset_names
from clipself_d2.data.datasets.captions import (
    caption_file_records,
    read_captions,
    shard_caption_records,
)
from clipself_d2.data.pictures import read_picture


@pytest.fixture
def folder(tmp_path: Path, write_picture) -> Path:
    for name in ("1.png", "2.png"):
        write_picture(tmp_path / "images" / name)
    return tmp_path / "images"


def write_json(path: Path, annotations: list[dict], num_images: int = 2) -> Path:
    images = [
        {"id": number, "file_name": f"{number}.png", "width": 40, "height": 30}
        for number in range(1, num_images + 1)
    ]
    path.write_text(json.dumps({"images": images, "annotations": annotations}))
    return path


def captions_of(*rows: tuple[int, str]) -> list[dict]:
    return [
        {"id": number, "image_id": image_id, "caption": caption}
        for number, (image_id, caption) in enumerate(rows)
    ]


def test_a_coco_file_gives_every_picture_its_captions(tmp_path, folder) -> None:
    file = write_json(tmp_path / "c.json", captions_of((2, "a dog"), (1, "a  cat\n"), (2, "dogs")))
    assert caption_file_records(file, folder) == [
        {"file_name": str(folder / "2.png"), "image_id": 2, "captions": ["a dog", "dogs"]},
        {"file_name": str(folder / "1.png"), "image_id": 1, "captions": ["a cat"]},
    ]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.tsv", '1.png\ta "big" cat, lying\n2.png\tdogs\n'),
        ("b.tsv", 'title\tfilepath\na "big" cat, lying\t1.png\ndogs\t2.png\n'),
        ("c.csv", 'image,caption\n1.png,"a ""big"" cat, lying"\n2.png,dogs\n'),
    ],
)
def test_a_list_is_read_with_and_without_a_header(tmp_path, folder, name, content) -> None:
    (tmp_path / name).write_text(content)
    records = caption_file_records(tmp_path / name, folder)
    assert [record["captions"] for record in records] == [['a "big" cat, lying'], ["dogs"]]
    assert [record["file_name"] for record in records] == [
        str(folder / "1.png"),
        str(folder / "2.png"),
    ]


def test_shards_pair_pictures_with_text_of_the_same_stem(tmp_path, write_shard, jpeg) -> None:
    write_shard(
        tmp_path / "s-0.tar",
        {
            "000.jpg": jpeg(10),
            "000.txt": b"a dog",
            "001.jpg": jpeg(90),
            "001.json": json.dumps({"caption": "a cat"}).encode(),
            "002.jpg": jpeg(50),
        },
    )
    records = shard_caption_records(str(tmp_path / "s-{0..0}.tar"))
    assert [record["captions"] for record in records] == [["a dog"], ["a cat"]]
    assert read_picture(records[1]["file_name"]).getpixel((5, 5))[0] == pytest.approx(90, abs=3)


def test_shards_without_captions_say_what_is_missing(tmp_path, write_shard, jpeg) -> None:
    write_shard(tmp_path / "s.tar", {"000.jpg": jpeg(10)})
    with pytest.raises(ValueError, match=r"no picture of .*s\.tar has a caption.*<stem>\.txt"):
        shard_caption_records(str(tmp_path / "s.tar"))


def test_captions_of_pictures_that_are_not_listed_are_refused(tmp_path, folder) -> None:
    file = write_json(tmp_path / "c.json", captions_of((7, "a dog")))
    with pytest.raises(ValueError, match=r"c\.json has a caption of image 7, which it does not"):
        caption_file_records(file, folder)


def test_pictures_that_do_not_exist_are_named(tmp_path, folder) -> None:
    file = write_json(tmp_path / "c.json", captions_of((3, "a dog")), num_images=3)
    with pytest.raises(FileNotFoundError, match=r"3\.png"):
        caption_file_records(file, folder)


@pytest.mark.parametrize("caption", ["", "  \n", None])
def test_empty_captions_are_named(tmp_path, folder, caption) -> None:
    file = write_json(tmp_path / "c.json", captions_of((1, caption)))
    with pytest.raises(ValueError, match=r"c\.json has the empty caption .* of image 1"):
        caption_file_records(file, folder)


def test_a_file_without_captions_is_refused(tmp_path, folder) -> None:
    with pytest.raises(ValueError, match=r"c\.json has no caption"):
        caption_file_records(write_json(tmp_path / "c.json", []), folder)
    (tmp_path / "short.tsv").write_text("1.png\n")
    with pytest.raises(ValueError, match=r"short\.tsv has 1 columns in row 1"):
        caption_file_records(tmp_path / "short.tsv", folder)


def test_a_corpus_is_read_without_its_pictures(tmp_path) -> None:
    file = write_json(tmp_path / "c.json", captions_of((1, "a dog"), (2, "a cat")))
    (tmp_path / "c.txt").write_text("a dog\n\na cat\n")
    assert read_captions(str(file), tmp_path) == ["a dog", "a cat"]
    assert read_captions(str(tmp_path / "c.txt"), tmp_path) == ["a dog", "a cat"]
    with pytest.raises(FileNotFoundError, match=r"none\.json does not exist; check --captions"):
        read_captions("none.json", tmp_path)


def test_the_embedded_captions_are_registered(emoji_root, catalogs) -> None:
    names = register_captions(emoji_root, prefix="tiny_")
    assert "tiny_coco_captions_train" in names
    records = DatasetCatalog.get("tiny_emoji_captions_train")
    assert len(records) == 16
    assert all(len(record["captions"]) == 2 for record in records)
    assert len(read_captions("emoji", emoji_root)) == 32
    assert "emoji_captions_val" in DatasetCatalog.list()


def test_data_sets_are_named_by_where_they_lie(
    tmp_path, folder, catalogs, write_shard, jpeg
) -> None:
    file = write_json(tmp_path / "c.json", captions_of((1, "a dog")))
    write_shard(tmp_path / "s.tar", {"0.jpg": jpeg(10), "0.txt": b"a dog"})
    names = (f"captions:{file}:{folder}", f"captions_webdataset:{tmp_path}/s.tar")
    for name in resolve_dataset_names(names):
        assert [record["captions"] for record in DatasetCatalog.get(name)] == [["a dog"]]
    with pytest.raises(FileNotFoundError, match=r"annotation file .*none\.json does not exist"):
        resolve_dataset_names([f"captions:none.json:{folder}"])


def test_hidden_members_of_a_shard_are_passed_over(tmp_path, write_shard, jpeg) -> None:
    members = {"1.jpg": jpeg(9), "1.txt": b"a dog", "._1.jpg": b"\x00", "._1.json": b"\x00\x05"}
    records = shard_caption_records(str(write_shard(tmp_path / "0.tar", members)))
    assert [record["captions"] for record in records] == [["a dog"]]
