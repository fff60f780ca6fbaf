import argparse
from pathlib import Path

import pytest

from clipself_d2_cli.flags import add_data_root, data_root, user_path


def test_the_home_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert user_path("~/data") == Path("/home/someone/data")
    assert user_path("data") == Path("data")


def test_the_root_is_the_flag_or_detectron2s_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    assert data_root() == Path("datasets")
    monkeypatch.setenv("DETECTRON2_DATASETS", "~/sets")
    parser = argparse.ArgumentParser()
    add_data_root(parser, "--root", "folder of coco/")
    assert parser.parse_args([]).root == Path("/home/someone/sets")
    assert parser.parse_args(["--root", "~/mine"]).root == Path("/home/someone/mine")
    assert "default DETECTRON2_DATASETS" in parser.format_help()
