"""A recipe's name stands for its file where no file of the user's has that name."""

from pathlib import Path

import pytest

from clipself_d2.parts.recipe_files import find_config, recipe_folder

NAME = "emoji/rpn.yaml"


def test_names_lead_to_recipes_unless_a_file_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = str(recipe_folder() / NAME)
    assert find_config(NAME) == find_config(f"configs/{NAME}") == recipe
    assert find_config("") == ""
    assert find_config("emoji") == "emoji"
    assert find_config("nowhere.yaml") == "nowhere.yaml"
    (tmp_path / "emoji").mkdir()
    (tmp_path / NAME).write_text("VERSION: 2\n")
    assert find_config(NAME) == NAME
