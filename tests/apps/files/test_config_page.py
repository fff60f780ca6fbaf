"""docs/config.md is what the comments of the config say."""

from pathlib import Path

from clipself_d2.apps.files.config_page import read_groups, render

PAGE = Path(__file__).parents[3] / "docs" / "config.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text(encoding="utf-8") == render(), (
        "run python tools/list_keys.py --output docs/config.md"
    )


def test_every_key_has_a_row_with_default_and_meaning() -> None:
    keys = {key.name: key for keys in read_groups().values() for key in keys}
    clip = keys["MODEL.CLIP.NAME"]
    assert clip.default == "'ViT-B-16-quickgelu'"
    assert clip.meaning.startswith("Model name as open_clip knows it")
    assert len(keys) > 50
