from collections.abc import Callable
from pathlib import Path

import pytest

from clipself_d2.data.datasets.images_only import folder_records, list_records, shard_records
from clipself_d2.data.pictures import read_picture

Write = Callable[..., Path]


def test_a_folder_is_searched_to_its_depth_in_order(tmp_path: Path, write_picture: Write) -> None:
    for name in ("b.jpg", "a/z.PNG", "a/b/c.webp", "c.jpeg"):
        write_picture(tmp_path / name)
    (tmp_path / "notes.txt").write_text("none")
    records = folder_records(tmp_path)
    assert [record["image_id"] for record in records] == [
        "a/b/c.webp",
        "a/z.PNG",
        "b.jpg",
        "c.jpeg",
    ]
    assert all(Path(record["file_name"]).is_file() for record in records)


def test_a_folder_without_an_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no image"):
        folder_records(tmp_path)


def test_a_list_keeps_its_order_and_is_relative_to_itself(
    tmp_path: Path, write_picture: Write
) -> None:
    far = write_picture(tmp_path / "far" / "1.jpg")
    write_picture(tmp_path / "lists" / "sub" / "2.jpg")
    file = tmp_path / "lists" / "some.txt"
    file.write_text(f"sub/2.jpg\n\n{far}\n")
    records = list_records(file)
    assert [record["image_id"] for record in records] == ["sub/2.jpg", str(far)]
    assert [read_picture(record["file_name"]).size for record in records] == [(40, 30)] * 2


@pytest.mark.parametrize(
    ("text", "complaint"),
    [(b"", "names no image"), (b"1.jpg\n1.jpg\n", "twice"), (b"\xff\xfe1", "no text")],
)
def test_a_faulty_list_is_an_error(
    text: bytes, complaint: str, tmp_path: Path, write_picture: Write
) -> None:
    write_picture(tmp_path / "1.jpg")
    (tmp_path / "list.txt").write_bytes(text)
    with pytest.raises(ValueError, match=complaint):
        list_records(tmp_path / "list.txt")


def test_missing_images_of_a_list_are_counted_and_the_first_named(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("x/1.jpg\nx/2.jpg\n")
    with pytest.raises(FileNotFoundError, match=r"x/1\.jpg and 1 more are missing; correct .*list"):
        list_records(tmp_path / "list.txt")


def test_pictures_of_shards_can_be_read(
    tmp_path: Path, write_shard: Write, jpeg: Callable[[int], bytes]
) -> None:
    write_shard(tmp_path / "s-0.tar", {"a.jpg": jpeg(10), "a.txt": b"words", "b.jpg": jpeg(90)})
    write_shard(tmp_path / "s-1.tar", {"c.jpg": jpeg(200)})
    records = shard_records(f"{tmp_path}/s-{{0..1}}.tar")
    assert [record["image_id"] for record in records] == ["s-0/a.jpg", "s-0/b.jpg", "s-1/c.jpg"]
    reds = [read_picture(record["file_name"]).getpixel((5, 5))[0] for record in records]
    assert reds == pytest.approx([10, 90, 200], abs=3)


def test_shards_without_a_picture_are_an_error(tmp_path: Path, write_shard: Write) -> None:
    write_shard(tmp_path / "s.tar", {"a.txt": b"words"})
    with pytest.raises(ValueError, match="hold no image"):
        shard_records(f"{tmp_path}/s.tar")


def test_hidden_files_and_folders_are_passed_over(tmp_path: Path, write_picture: Write) -> None:
    for name in ("a.png", "deep/b.png", ".trash/c.png"):
        write_picture(tmp_path / name)
    for name in ("._a.png", "deep/._b.png"):
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    assert [row["image_id"] for row in folder_records(tmp_path)] == ["a.png", "deep/b.png"]
