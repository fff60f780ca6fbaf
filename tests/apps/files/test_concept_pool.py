import io
import json
import tarfile
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from clipself_d2.apps.files.concept_pool import build_concept_pool


def test_a_corpus_becomes_a_file_of_nouns_by_count(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text(
        "A man rides a horse.\nTwo horses near a fire engine\nthe horse and the fire engine\n"
    )
    output = tmp_path / "new" / "concepts.txt"
    pool = build_concept_pool(str(tmp_path / "captions.txt"), output, min_count=2)
    assert pool.names == ("horse", "fire engine")
    assert output.read_text() == "horse,3\nfire engine,2\n"


def test_the_embedded_captions_name_the_embedded_world(emoji_root, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(emoji_root))
    pool = build_concept_pool("emoji", tmp_path / "concepts.txt", min_count=1)
    from clipself_d2.data.datasets.emoji_world import load_world

    world = load_world()
    known = {*world.thing_names, *world.stuff, "photo", "picture", "drawing", "emoji"}
    assert set(pool.names) <= known
    assert len(pool.names) > 30


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "captions.txt").write_text("a dog\n")
    captions = str(tmp_path / "captions.txt")
    with pytest.raises(ValueError, match="--output .* is a folder"):
        build_concept_pool(captions, tmp_path, min_count=1)
    with pytest.raises(ValueError, match="lower min_count"):
        build_concept_pool(captions, tmp_path / "out.txt", min_count=100)
    with pytest.raises(ValueError, match="parser is 'nltk'"):
        build_concept_pool(captions, tmp_path / "out.txt", parser="nltk")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"empty\.txt has no caption"):
        build_concept_pool(str(tmp_path / "empty.txt"), tmp_path / "out.txt")
    assert not (tmp_path / "out.txt").exists()


def write_shard(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))


def test_a_data_set_is_read_without_its_pictures(tmp_path: Path) -> None:
    (tmp_path / "list.tsv").write_text("missing.png\ta dog\nabsent.png\ttwo dogs\n")
    shard = {"0.jpg": b"no picture", "0.txt": b"a dog", "1.jpg": b"", "1.txt": b"dogs"}
    write_shard(tmp_path / "s-0.tar", shard)
    content = {
        "images": [{"id": 1, "file_name": "missing.png", "width": 4, "height": 4}],
        "annotations": [{"id": n, "image_id": 1, "caption": "a dog"} for n in (1, 2)],
    }
    (tmp_path / "c.json").write_text(json.dumps(content))
    MetadataCatalog.get("pool_of_two").set(json_file=str(tmp_path / "c.json"))
    DatasetCatalog.register("pool_of_two", list)
    sources = (
        f"captions:{tmp_path}/list.tsv:{tmp_path}",
        f"captions_webdataset:{tmp_path}/s-{{0..0}}.tar",
        "pool_of_two",
    )
    try:
        for source in sources:
            pool = build_concept_pool(source, tmp_path / "out.txt", min_count=2)
            assert (pool.names, pool.counts) == (("dog",), (2,)), source
    finally:
        DatasetCatalog.remove("pool_of_two")
        MetadataCatalog.remove("pool_of_two")


def test_data_sets_without_captions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"shard .*none\.tar"):
        build_concept_pool(f"captions_webdataset:{tmp_path}/none.tar", tmp_path / "out.txt")
    DatasetCatalog.register("pool_of_none", list)
    try:
        with pytest.raises(ValueError, match="--captions pool_of_none .* without captions"):
            build_concept_pool("pool_of_none", tmp_path / "out.txt")
    finally:
        DatasetCatalog.remove("pool_of_none")
        MetadataCatalog.remove("pool_of_none")
