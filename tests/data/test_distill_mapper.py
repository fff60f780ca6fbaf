import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clipself_d2.data.distill_mapper import DistillMapper, ProposalFile, scale_boxes

OPTIONS = {
    "image_size": 96,
    "crop_size": 32,
    "max_split": 3,
    "max_boxes": 4,
    "box_size_range": (4.0, 200.0),
    "crop_enlarge": 1.5,
}


@pytest.fixture
def record(tmp_path: Path) -> dict[str, object]:
    pixels = np.random.default_rng(1).integers(0, 255, (60, 80, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return {"file_name": str(tmp_path / "a.png"), "image_id": 5}


def write_proposals(path: Path, boxes: list[list[float]], image_id: int = 5) -> ProposalFile:
    rows = [{"image_id": image_id, "bbox": box, "category_id": 1} for box in boxes]
    path.write_text(json.dumps({"annotations": rows}))
    return ProposalFile(path)


def test_grid_items_hold_boxes_of_the_scaled_picture_and_as_many_crops(record) -> None:
    mapper = DistillMapper(regions="grid", proposals=None, **OPTIONS)
    item = mapper(record, np.random.default_rng(0))
    assert item["image"].shape == (3, 72, 96)
    assert item["image"].dtype == torch.uint8
    assert item["crops"].shape == (len(item["boxes"]), 3, 32, 32)
    assert item["boxes"][:, 2].max() <= 96
    assert item["boxes"][:, 3].max() <= 72
    assert (item["height"], item["width"]) == (60, 80)


def test_the_same_generator_gives_the_same_item(record) -> None:
    mapper = DistillMapper(regions="grid", proposals=None, **OPTIONS)
    first, second = (mapper(record, np.random.default_rng(4)) for _ in range(2))
    assert torch.equal(first["boxes"], second["boxes"])
    assert torch.equal(first["crops"], second["crops"])


def test_a_proposal_is_the_students_box_and_its_crop_is_larger(record, tmp_path) -> None:
    proposals = write_proposals(tmp_path / "p.json", [[20, 20, 20, 10]])
    mapper = DistillMapper(regions="proposals", proposals=proposals, **OPTIONS)
    item = mapper(record, np.random.default_rng(0))
    torch.testing.assert_close(item["boxes"], torch.tensor([[24.0, 24.0, 48.0, 36.0]]))
    pixels = np.asarray(Image.open(record["file_name"]))
    expected = Image.fromarray(pixels[18:32, 15:45]).resize((32, 15), Image.Resampling.BICUBIC)
    got = item["crops"][0].permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(got[8:23], np.asarray(expected))
    assert got[:8].max() == 0


def test_both_sources_are_joined(record, tmp_path) -> None:
    proposals = write_proposals(tmp_path / "p.json", [[20, 20, 20, 10], [0, 0, 30, 30]])
    mapper = DistillMapper(regions="both", proposals=proposals, **OPTIONS)
    grid = DistillMapper(regions="grid", proposals=None, **OPTIONS)
    count = len(grid(record, np.random.default_rng(0))["boxes"])
    assert len(mapper(record, np.random.default_rng(0))["boxes"]) == count + 2


def test_a_picture_without_proposals_takes_its_first_quarter(record, tmp_path) -> None:
    proposals = write_proposals(tmp_path / "p.json", [[0, 0, 9, 9]], image_id=6)
    mapper = DistillMapper(regions="proposals", proposals=proposals, **OPTIONS)
    item = mapper(record, np.random.default_rng(0))
    assert torch.allclose(item["boxes"], torch.tensor([[0.0, 0.0, 24.0, 18.0]]))


def test_unknown_regions_name_their_key() -> None:
    with pytest.raises(ValueError, match=r"MODEL\.DISTILL\.REGIONS"):
        DistillMapper(regions="tiles", proposals=None, **OPTIONS)


def test_proposals_without_a_file_name_their_key() -> None:
    with pytest.raises(ValueError, match="PROPOSAL_FILE"):
        DistillMapper(regions="both", proposals=None, **OPTIONS)
    with pytest.raises(ValueError, match="PROPOSAL_FILE"):
        ProposalFile("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("{}", "annotations"),
        ('{"annotations": []}', "no box"),
    ],
)
def test_broken_proposal_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=rf"p\.json.*{message}|{message}.*p\.json"):
        ProposalFile(tmp_path / "p.json")


def test_proposals_of_another_data_set_are_refused(tmp_path: Path) -> None:
    proposals = write_proposals(tmp_path / "p.json", [[0, 0, 9, 9]])
    with pytest.raises(ValueError, match="none|any of the 2"):
        proposals.check_images([1, 2])
    proposals.check_images([5, 6])


def test_boxes_are_scaled_by_the_longest_side() -> None:
    scaled = scale_boxes(np.array([[0.0, 0.0, 10.0, 5.0]]), (100, 49), (200, 98))
    assert scaled.tolist() == [[0.0, 0.0, 20.0, 10.0]]
