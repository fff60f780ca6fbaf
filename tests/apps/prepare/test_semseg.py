"""The published maps of every benchmark, in miniature."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from clipself_d2.apps.prepare.semseg import CONTEXT_59, VOC_20, SourceFolders, prepare_semseg
from clipself_d2.data.datasets.semantic import register_semantic_sets
from clipself_d2.parts.label_maps import read_label_map


@pytest.fixture
def source(tmp_path: Path):
    """Function from a published map, an array, to the folders of a set with one picture."""

    def make(published: np.ndarray, suffix: str = ".png", names: str | None = None):
        for kind in ("images", "labels"):
            (tmp_path / "in" / kind).mkdir(parents=True, exist_ok=True)
        size = published.shape[1], published.shape[0]
        Image.new("RGB", size).save(tmp_path / "in" / "images" / "a.jpg")
        path = tmp_path / "in" / "labels" / f"a{suffix}"
        if suffix == ".mat":
            savemat(path, {"LabelMap": published})
        else:
            Image.fromarray(published).save(path)
        file = None
        if names is not None:
            file = tmp_path / "in" / "names"
            file.write_text(names)
        return SourceFolders(tmp_path / "in" / "images", tmp_path / "in" / "labels", file)

    return make


def labels_of(name: str, source: SourceFolders, root: Path) -> tuple[list[int], list[str]]:
    folder = prepare_semseg(name, "val", source, root)
    path = next((folder / "labels").iterdir())
    assert (folder / "images" / "a.jpg").is_file()
    names = json.loads((folder.parent / "classes.json").read_text())
    return read_label_map(str(path))[0].tolist(), names


def row(*values: int, kind: type = np.uint8) -> np.ndarray:
    return np.array([values, values], kind)


def test_coco_stuff_closes_the_gaps_of_its_numbers(source, tmp_path) -> None:
    # Pixels hold id - 1: person, the last thing, banner, wood, and nothing.
    got, names = labels_of("coco_stuff", source(row(0, 89, 91, 181, 255)), tmp_path)
    assert got == [0, 79, 80, 170, 255]
    assert (names[0], names[79], names[80], names[170]) == (
        "person",
        "toothbrush",
        "banner",
        "wood",
    )
    # 11 is the gap between fire hydrant (id 11) and stop sign (id 13): no class has it.
    assert labels_of("coco_stuff", source(row(10, 11, 12)), tmp_path)[0] == [10, 255, 11]


def test_ade20k_begins_at_one(source, tmp_path) -> None:
    got, names = labels_of("ade20k_150", source(row(0, 1, 150)), tmp_path)
    assert got == [255, 0, 149]
    assert (len(names), names[0]) == (150, "wall")


def test_the_full_ade20k_reads_numbers_from_colours(source, tmp_path) -> None:
    classes = [{"id": 10 + 3 * number, "name": f"c{number}"} for number in range(847)]
    number = 10 + 3 * 500  # 1510 is 5 times 256 and 230
    colours = np.zeros((2, 2, 3), np.uint8)
    colours[:, 0] = (50, 230, 7)
    got, names = labels_of("ade20k_847", source(colours, names=json.dumps(classes)), tmp_path)
    assert number == 1510
    assert got == [500, 65535]
    assert len(names) == 847


def test_pascal_context_takes_59_of_its_459_words(source, tmp_path) -> None:
    words = [*(f"rare{n}" for n in range(400)), *CONTEXT_59]
    text = "\n".join(f"{n + 1}: {word}" for n, word in enumerate(words))
    maps = row(1, 401, 459, 0, kind=np.uint16)
    assert labels_of("context_59", source(maps, ".mat", text), tmp_path)[0] == [255, 0, 58, 255]
    got, names = labels_of("context_459", source(maps, ".mat", text), tmp_path)
    assert got == [0, 400, 458, 65535]
    assert names[400] == "aeroplane"


def test_voc_in_its_three_protocols(source, tmp_path) -> None:
    maps = row(0, 1, 20, 255)
    assert labels_of("voc_20", source(maps), tmp_path)[0] == [255, 0, 19, 255]
    got, names = labels_of("voc_20b", source(maps), tmp_path)
    assert got == [20, 0, 19, 255]
    assert (len(names), names[:20]) == (59, VOC_20)
    got, names = labels_of("voc_21", source(maps), tmp_path)
    assert got == [0, 1, 20, 255]
    assert names[0] == "background"


def test_what_is_missing_or_wrong_is_named(source, tmp_path) -> None:
    with pytest.raises(ValueError, match="no set 'ade' with a split"):
        prepare_semseg("ade", "val", source(row(1)), tmp_path)
    with pytest.raises(ValueError, match="needs --names"):
        prepare_semseg("context_59", "val", source(row(1)), tmp_path)
    with pytest.raises(ValueError, match="holds the label 150 of 150"):
        prepare_semseg("ade20k_150", "val", source(row(151)), tmp_path)
    with pytest.raises(FileNotFoundError, match="elsewhere"):
        prepare_semseg("voc_20", "val", SourceFolders(tmp_path / "elsewhere", tmp_path), tmp_path)


def test_what_is_written_is_what_is_registered(source, tmp_path, catalogs) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    labels_of("voc_20b", source(row(0, 1, 20, 255)), tmp_path)
    assert "mine_voc_20b_sem_seg_val" in register_semantic_sets(tmp_path, prefix="mine_")
    records = DatasetCatalog.get("mine_voc_20b_sem_seg_val")
    assert len(records) == 1
    metadata = MetadataCatalog.get("mine_voc_20b_sem_seg_val")
    assert (metadata.fold_from, metadata.ignore_label) == (20, 255)
