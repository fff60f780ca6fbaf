"""Label maps beside pictures: pairs, classes, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from clipself_d2.data.datasets.custom import resolve_dataset_names
from clipself_d2.data.datasets.semantic import pair_files, read_classes
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.text_embeddings import dataset_vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for kind in ("images", "labels"):
        (tmp_path / kind).mkdir()
    for stem in ("a", "b"):
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / f"{stem}.jpg")
        labels = np.array([[0, 1, 2, 255, 0, 0]] * 4, np.uint8)
        Image.fromarray(labels).save(tmp_path / "labels" / f"{stem}.png")
    (tmp_path / "labels" / "._a.png").write_bytes(b"x")
    (tmp_path / "classes.json").write_text(json.dumps(["wall", "road, street", "sky"]))
    return tmp_path


def test_a_data_set_of_ones_own_in_one_line(folder: Path, catalogs) -> None:
    name = f"sem_seg:{folder}/images:{folder}/labels:{folder}/classes.json"
    resolve_dataset_names([name])
    records = DatasetCatalog.get(name)
    assert [record["image_id"] for record in records] == ["a", "b"]
    vocabulary = dataset_vocabulary(name)
    assert vocabulary.words == (("wall",), ("road", "street"), ("sky",))
    assert not any(vocabulary.thing_mask)
    assert MetadataCatalog.get(name).ignore_label == 255
    evaluator = build_evaluator(name, None)
    scores = torch.zeros(3, 4, 6)
    scores[0] = 1
    for record in records:
        evaluator.process([record], [{"sem_seg": scores}])
    got = evaluator.evaluate()["sem_seg"]
    assert got["mIoU"] == pytest.approx(100 * (3 / 5) / 3)


def test_maps_without_pictures_and_missing_folders_are_named(folder: Path) -> None:
    (folder / "images" / "b.jpg").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 label maps .* b\.png; do it"):
        pair_files(folder / "images", folder / "labels", "do it")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        pair_files(folder / "nowhere", folder / "labels", "do it")


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        *((text, "is not a json list of names") for text in ("[]", "{}", '["a", ""]', '["a", 3]')),
        ('["wall", "sky", "wall"]', "names 'wall' twice"),
        ("wall", "is no json"),
    ],
)
def test_faulty_lists_of_classes_are_refused(content: str, complaint: str, tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(content)
    with pytest.raises(ValueError, match=complaint):
        read_classes(tmp_path / "classes.json", "correct it")


def test_classes_of_one_first_word_keep_their_words(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["screen, CRT", ["screen", "projection"], "sea, sea"]')
    got = read_classes(tmp_path / "classes.json", "correct it")
    assert got["stuff_classes"] == ["screen, CRT", "screen, projection", "sea"]
