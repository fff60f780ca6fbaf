import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from clipself_d2.data import tar_shards
from clipself_d2.data.tar_shards import (
    INDEX_SUFFIX,
    expand_shards,
    index_shard,
    is_member,
    member_address,
    read_member,
)


@pytest.fixture
def shard(tmp_path: Path, write_shard: Callable[..., Path]) -> Path:
    members = {"0001.jpg": b"first", "0001.txt": b"a caption", "sub/0002.PNG": b"second picture"}
    return write_shard(tmp_path / "shard-000.tar", members)


def test_the_index_lists_pictures_and_the_bytes_are_theirs(shard: Path) -> None:
    members = index_shard(shard)
    assert [name for name, _, _ in members] == ["0001.jpg", "sub/0002.PNG"]
    addresses = [member_address(shard, member) for member in members]
    assert [read_member(address) for address in addresses] == [b"first", b"second picture"]
    assert all(is_member(pickle.loads(pickle.dumps(address))) for address in addresses)


def test_a_member_is_found_without_its_place(shard: Path) -> None:
    assert read_member(f"{shard}::sub/0002.PNG") == b"second picture"
    with pytest.raises(FileNotFoundError, match=r"shard-000\.tar has no picture 9\.jpg"):
        read_member(f"{shard}::9.jpg")


def test_long_member_names_keep_their_place(
    tmp_path: Path, write_shard: Callable[..., Path]
) -> None:
    name = "d" * 90 + "/" + "f" * 120 + ".jpg"
    shard = write_shard(tmp_path / "long.tar", {name: b"content", "last.jpg": b"z"})
    for member, content in zip(index_shard(shard), (b"content", b"z"), strict=True):
        assert read_member(member_address(shard, member)) == content


def test_the_index_is_made_once_and_again_for_another_shard(
    shard: Path, write_shard: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = index_shard(shard)
    with monkeypatch.context() as patch:
        patch.setattr(tar_shards, "_scan", lambda path: pytest.fail("read again"))
        assert index_shard(shard) == first
    write_shard(shard, {"0009.jpg": b"another one", "0010.jpg": b"x" * 20_000})
    assert [name for name, _, _ in index_shard(shard)] == ["0009.jpg", "0010.jpg"]


def test_a_compressed_shard_is_refused(tmp_path: Path, write_shard: Callable[..., Path]) -> None:
    shard = write_shard(tmp_path / "a.tar", {"1.jpg": b"x"}, mode="w:gz")
    with pytest.raises(ValueError, match=r"a\.tar.*without compression"):
        index_shard(shard)


def test_ranges_and_wildcards(tmp_path: Path) -> None:
    shards = [tmp_path / f"cc3m-{number:03d}.tar" for number in (8, 9, 10)]
    for shard in shards:
        shard.touch()
    assert expand_shards(f"{tmp_path}/cc3m-{{008..010}}.tar") == shards
    assert expand_shards(f"{tmp_path}/cc3m-*.tar") == shards
    assert expand_shards(f"{tmp_path}/cc3m-{{0..0}}{{08..09}}.tar") == shards[:2]
    with pytest.raises(FileNotFoundError, match=r"cc3m-011\.tar"):
        expand_shards(f"{tmp_path}/cc3m-{{008..011}}.tar")
    with pytest.raises(FileNotFoundError, match=r"cc12m-\*"):
        expand_shards(f"{tmp_path}/cc12m-*.tar")
    with pytest.raises(ValueError, match="counts down"):
        expand_shards(f"{tmp_path}/cc3m-{{010..008}}.tar")


def test_a_vanished_shard_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.tar"):
        read_member(f"{tmp_path}/gone.tar::1.jpg@512+10")


def test_hidden_members_are_passed_over(
    tmp_path: Path, write_shard: Callable[..., Path], jpeg: Callable[[int], bytes]
) -> None:
    names = ("./a.jpg", "._a.jpg", "./._a.jpg", "folder/b.jpg", "folder/._b.jpg", ".trash/c.jpg")
    shard = write_shard(tmp_path / "0.tar", {name: jpeg(9) for name in names})
    assert [member[0] for member in index_shard(shard)] == ["./a.jpg", "folder/b.jpg"]


FORGED = {
    "behind the end": ["a.jpg", 0, 10**15],
    "before the beginning": ["a.jpg", -512, 20],
    "no number": ["a.jpg", 1e999, 20],
    "another kind of file": ["._a.jpg", 512, 20],
}


@pytest.mark.parametrize("row", FORGED.values(), ids=FORGED.keys())
def test_a_forged_index_is_made_again(shard: Path, row: list) -> None:
    expected = index_shard(shard)
    index = shard.with_name(shard.name + INDEX_SUFFIX)
    content = json.loads(index.read_text())
    index.write_text(json.dumps({**content, "members": [row]}))
    assert index_shard(shard) == expected


@pytest.mark.parametrize("text", ["{", "[" * 100_000, '{"members": ' + " " * 200_000 + "[]}"])
def test_an_index_that_is_damaged_or_would_take_long_is_made_again(shard: Path, text: str) -> None:
    expected = index_shard(shard)
    shard.with_name(shard.name + INDEX_SUFFIX).write_text(text)
    assert index_shard(shard) == expected


def test_an_address_behind_the_end_is_refused(shard: Path) -> None:
    with pytest.raises(ValueError, match=r"ends before the picture .*a\.jpg@512\+999999999999999"):
        read_member(f"{shard}::a.jpg@512+999999999999999")
