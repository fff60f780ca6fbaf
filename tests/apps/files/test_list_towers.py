from pathlib import Path

import pytest

from clipself_d2.apps.files.list_towers import render, write_towers
from clipself_d2.clip.catalog import known_models

PAGE = Path(__file__).parents[3] / "docs" / "towers.md"
NAMES = ["ViT-B-32", "coca_ViT-B-32"]
# One of each path that is described in a moment; tests/clip/test_catalog.py has one of each family.
SOME = ["ViT-S-32-alt", "PE-Core-T-16-384", "vit_medium_patch16_gap_256", "convnext_tiny"]
SOME += ["coca_ViT-B-32", "RN50-quickgelu"]


def rows(page):
    """A page's rows by model."""
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return {line.split("`")[1]: line for line in lines}


def test_the_page_lists_every_model_of_open_clip():
    assert list(rows(PAGE.read_text())) == list(known_models())


def test_the_page_is_up_to_date():
    page, stored = render(SOME), PAGE.read_text()
    text = page.split("| model |")[0]
    assert stored.startswith(text), "run tools/list_towers.py --output docs/towers.md"
    assert rows(page).items() <= rows(stored).items()


@pytest.mark.slow
def test_the_whole_page_is_up_to_date():
    assert PAGE.read_text() == render(known_models())


def test_the_page_goes_to_a_file_or_to_the_terminal(tmp_path, capsys):
    write_towers(NAMES, tmp_path / "towers.md")
    assert capsys.readouterr().out == ""
    page = (tmp_path / "towers.md").read_text()
    assert [row.split("|")[2].strip() for row in rows(page).values()] == ["yes", "no"]
    write_towers(NAMES, None)
    assert capsys.readouterr().out == page


def test_without_names_all_models_are_described(tmp_path, monkeypatch):
    module = "clipself_d2.apps.files.list_towers"
    monkeypatch.setattr(f"{module}.known_models", lambda: ("a", "b"))
    monkeypatch.setattr(f"{module}.render", " ".join)
    write_towers([], tmp_path / "towers.md")
    assert (tmp_path / "towers.md").read_text() == "a b"
