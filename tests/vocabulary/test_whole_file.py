import resource
from pathlib import Path

import pytest
import torch

from clipself_d2.vocabulary.whole_file import BESIDE, whole_file


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as file:
        file.write("one")

    def fail() -> None:
        with whole_file(path) as file:
            file.write("two")
            file.flush()
            assert path.read_text() == "one"
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert path.read_text() == "one"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "model_final.pth"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        # torch's writer reports an error of its own, without the file and the system's reason.
        said = r"model_final\.pth cannot be written: File too large"
        with pytest.raises(OSError, match=said), whole_file(path, "wb") as file:
            torch.save(torch.zeros(100_000), file)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_gone_is_named(tmp_path: Path) -> None:
    said = r"gone/a cannot be written: No such file"
    with pytest.raises(OSError, match=said), whole_file(tmp_path / "gone" / "a"):
        pass


def test_an_error_of_the_content_is_not_one_of_the_disk(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="own"), whole_file(tmp_path / "a"):
        raise RuntimeError("own")


def test_two_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    with whole_file(path) as one, whole_file(path) as other:
        assert len(list(tmp_path.glob(f".*{BESIDE}"))) == 2
        one.write("1")
        other.write("2")
    assert path.read_text() == "1"
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
