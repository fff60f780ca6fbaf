from pathlib import Path

import pytest

from clipself_d2.apps.emoji.prepare import EmojiOptions, prepare_emoji

OPTIONS = EmojiOptions(train=3, val=2, seed=4)


def contents(root: Path) -> dict[str, bytes]:
    files = [path for path in (root / "emoji").rglob("*") if path.is_file()]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in files
        if "manifest" not in path.name
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    assert prepare_emoji(tmp_path, OPTIONS)
    return tmp_path


def test_two_runs_write_the_same_bytes(root: Path, tmp_path_factory) -> None:
    other = tmp_path_factory.mktemp("other")
    prepare_emoji(other, OPTIONS)
    assert contents(root) == contents(other)


def test_a_second_run_does_nothing(root: Path) -> None:
    times = {path: path.stat().st_mtime_ns for path in (root / "emoji").rglob("*.jpg")}
    assert not prepare_emoji(root, OPTIONS)
    assert times == {path: path.stat().st_mtime_ns for path in (root / "emoji").rglob("*.jpg")}


def test_damage_is_repaired(root: Path) -> None:
    before = contents(root)
    victim = sorted((root / "emoji" / "train").glob("*.jpg"))[0]
    victim.write_bytes(victim.read_bytes()[:100])
    assert prepare_emoji(root, OPTIONS)
    assert contents(root) == before


def test_a_missing_annotation_file_is_written_again(root: Path) -> None:
    (root / "emoji" / "annotations" / "lvis_val.json").unlink()
    assert prepare_emoji(root, OPTIONS)
    assert (root / "emoji" / "annotations" / "lvis_val.json").is_file()


def test_other_options_replace_the_data_set(root: Path) -> None:
    assert prepare_emoji(root, EmojiOptions(train=2, val=2, seed=4))
    assert len(list((root / "emoji" / "train").glob("*.jpg"))) == 2


def test_an_interrupted_run_leaves_nothing_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("clipself_d2.apps.emoji.prepare._write_instances", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare_emoji(tmp_path, OPTIONS)
    assert not list((tmp_path / "emoji").rglob("*.json"))
    monkeypatch.undo()
    assert prepare_emoji(tmp_path, OPTIONS)


def test_sprites_beside_the_data_set_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "emoji").mkdir()
    (tmp_path / "emoji" / "noto.webp").write_text("kept")
    prepare_emoji(tmp_path, OPTIONS)
    assert (tmp_path / "emoji" / "noto.webp").read_text() == "kept"


@pytest.mark.parametrize("options", [{"train": 0}, {"val": 0}, {"seed": -1}])
def test_bad_numbers_name_their_flag(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"--{next(iter(options))}"):
        EmojiOptions(**options)
