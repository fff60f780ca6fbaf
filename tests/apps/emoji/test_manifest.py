from pathlib import Path

import pytest

from clipself_d2.apps.emoji.manifest import MANIFEST, find_problem, fingerprint, write_manifest

OPTIONS = {"train": 2, "seed": 0}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "b.txt").write_text("two")
    write_manifest(tmp_path, OPTIONS, [tmp_path / "a.txt", tmp_path / "b.txt"])
    return tmp_path


def test_an_untouched_folder_has_no_problem(folder: Path) -> None:
    assert find_problem(folder, OPTIONS) is None


def test_other_options_are_a_problem(folder: Path) -> None:
    assert find_problem(folder, {**OPTIONS, "seed": 1})


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "b.txt").unlink()
    assert "b.txt" in str(find_problem(folder, OPTIONS))


def test_a_changed_file_is_named(folder: Path) -> None:
    (folder / "a.txt").write_text("eno")
    assert "a.txt" in str(find_problem(folder, OPTIONS))


def test_a_damaged_manifest_is_a_problem(folder: Path) -> None:
    (folder / MANIFEST).write_text("{")
    assert find_problem(folder, OPTIONS)


def test_no_manifest_is_a_problem(tmp_path: Path) -> None:
    assert find_problem(tmp_path, OPTIONS)


def test_the_fingerprint_follows_the_bytes(folder: Path) -> None:
    before = fingerprint([folder / "a.txt"])
    (folder / "a.txt").write_text("other")
    assert fingerprint([folder / "a.txt"]) != before
