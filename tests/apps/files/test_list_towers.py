import pytest

from clipself_d2.apps.files.list_towers import write_towers

NAMES = ["ViT-B-32", "RN50"]


def test_page_goes_to_a_file_or_to_the_terminal(tmp_path, capsys):
    write_towers(NAMES, tmp_path / "towers.md")
    assert capsys.readouterr().out == ""
    page = (tmp_path / "towers.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert [row.split("|")[2].strip() for row in rows] == ["yes", "no"]
    write_towers(NAMES, None)
    assert capsys.readouterr().out == page


def test_without_names_all_models_are_described(tmp_path, monkeypatch):
    module = "clipself_d2.apps.files.list_towers"
    monkeypatch.setattr(f"{module}.known_models", lambda: ("a", "b"))
    monkeypatch.setattr(f"{module}.render", " ".join)
    write_towers([], tmp_path / "towers.md")
    assert (tmp_path / "towers.md").read_text() == "a b"


def test_missing_folder_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        write_towers(NAMES, tmp_path / "no" / "towers.md")
    with pytest.raises(ValueError, match="'ViT-Z' is no model"):
        write_towers(["ViT-Z"], tmp_path / "towers.md")
    assert not (tmp_path / "towers.md").exists()
