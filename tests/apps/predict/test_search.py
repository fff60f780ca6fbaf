"""An index over a folder answers words and pictures."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.apps.predict.search import RegionIndex, run_search


def small_index() -> RegionIndex:
    rows = F.normalize(torch.tensor([[1.0, 0.1], [0.0, 1.0], [1.0, 0.0], [0.7, 0.7]]), dim=1)
    boxes = torch.arange(16.0).reshape(4, 4)
    return RegionIndex(("a", "b"), "clip", torch.tensor([0, 0, 1, 1]), boxes, rows)


def test_a_question_gets_the_best_region_of_every_picture() -> None:
    across, down = small_index().ask(torch.eye(2), 5)
    assert [(row["file"], row["box"][0]) for row in across] == [("b", 8.0), ("a", 0.0)]
    assert [(row["file"], row["box"][0]) for row in down] == [("a", 4.0), ("b", 12.0)]
    assert across[0]["score"] == pytest.approx(1.0)
    assert len(small_index().ask(torch.eye(2), 1)[0]) == 1


def test_an_index_comes_back_from_its_folder(tmp_path: Path) -> None:
    small_index().save(tmp_path / "index")
    loaded = RegionIndex.load(tmp_path / "index")
    assert (loaded.files, loaded.clip) == (("a", "b"), "clip")
    torch.testing.assert_close(loaded.embeddings_RD, small_index().embeddings_RD, atol=1e-3, rtol=0)
    (tmp_path / "index" / "regions.safetensors").write_bytes(b"bad")
    with pytest.raises(ValueError, match="is damaged"):
        RegionIndex.load(tmp_path / "index")
    with pytest.raises(FileNotFoundError, match="holds no index"):
        RegionIndex.load(tmp_path)


def test_a_picture_finds_itself(detector_cfg, weights: Path, pictures, tmp_path: Path) -> None:
    cfg = detector_cfg()
    cfg.MODEL.WEIGHTS = str(weights)
    found = run_search(
        cfg,
        tmp_path / "index",
        inputs=[str(path) for path in pictures[:4]],
        regions=5,
        words="dog,police car",
        pictures=[str(pictures[1])],
        count=3,
        output=tmp_path / "out",
    )
    assert list(found) == ["dog", "police car", pictures[1].name]
    assert all(len(rows) == 3 for rows in found.values())
    assert json.loads((tmp_path / "out" / "answers.json").read_text()) == found
    assert len(list((tmp_path / "out").glob("answer_*.png"))) == 3
    index = RegionIndex.load(tmp_path / "index")
    assert torch.bincount(index.picture_R).max() <= 6
    with pytest.raises(ValueError, match="nothing to do"):
        run_search(
            cfg, tmp_path, inputs=[], regions=5, words=" ", pictures=[], count=3, output=None
        )
