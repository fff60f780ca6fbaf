import pytest
import torch

from clipself_d2.clip.weights.form import FORM_KEY, differences, read_form


@pytest.mark.parametrize("content", [None, b"", b"no weights"])
def test_a_file_that_does_not_say_has_no_form(tmp_path, content) -> None:
    path = tmp_path / "file.pth"
    if content is None:
        torch.save({"model": {}}, path)
    else:
        path.write_bytes(content)
    assert read_form(path) is None


def test_the_first_tower_speaks_for_a_file(tmp_path) -> None:
    torch.save({"model": {}, FORM_KEY: {"backbone.tower": {"a": 1}}}, tmp_path / "file.pth")
    assert read_form(tmp_path / "file.pth") == {"a": 1}


def test_fields_that_one_lacks_are_not_compared_and_near_numbers_are_equal() -> None:
    stored = {"a": 1, "mean": [100.0, 100.0], "std": [60.0], "list": [5]}
    wanted = {"b": 2, "a": 2, "mean": [100.0, 110.0], "std": [30.0], "list": [6]}
    assert differences(stored, wanted) == ["a", "std", "list"]
