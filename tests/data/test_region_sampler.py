import json
from pathlib import Path

import numpy as np
import pytest

from clipself_d2.data.region_sampler import ProposalFile, RegionSampler

SIZE = (80, 60)
OPTIONS = {"max_split": 3, "max_boxes": 4, "box_size_range": (4.0, 200.0), "crop_enlarge": 1.5}
RECORD = {"image_id": 5}


def write(path: Path, boxes: list[list[float]], image_id: int = 5, results: bool = False):
    rows = [{"image_id": image_id, "bbox": box, "category_id": 1} for box in boxes]
    path.write_text(json.dumps(rows if results else {"annotations": rows}))
    return ProposalFile(path)


def draw(sampler: RegionSampler, seed: int = 0, record: object = None):
    return sampler.draw(record or RECORD, SIZE, np.random.default_rng(seed))


def test_tiles_of_a_grid_are_their_own_crops() -> None:
    regions = draw(RegionSampler(source="grid", **OPTIONS))
    assert 1 <= len(regions.boxes) <= 4
    np.testing.assert_array_equal(regions.boxes, regions.crop_boxes)
    assert regions.classes is None


@pytest.mark.parametrize("results", [False, True])
def test_a_proposal_is_the_students_box_and_its_crop_is_larger(tmp_path, results: bool) -> None:
    proposals = write(tmp_path / "p.json", [[20, 20, 20, 10]], results=results)
    regions = draw(RegionSampler(source="proposals", proposals=proposals, **OPTIONS))
    np.testing.assert_allclose(regions.boxes, [[20, 20, 40, 30]])
    np.testing.assert_allclose(regions.crop_boxes, [[15, 17.5, 45, 32.5]])


def test_both_sources_are_joined(tmp_path) -> None:
    proposals = write(tmp_path / "p.json", [[20, 20, 20, 10], [0, 0, 30, 30]])
    both = draw(RegionSampler(source="both", proposals=proposals, **OPTIONS))
    grid = draw(RegionSampler(source="grid", **OPTIONS))
    assert len(both.boxes) == len(grid.boxes) + 2


def test_a_picture_without_proposals_takes_its_first_quarter(tmp_path) -> None:
    proposals = write(tmp_path / "p.json", [[0, 0, 9, 9]], image_id=6)
    regions = draw(RegionSampler(source="proposals", proposals=proposals, **OPTIONS))
    np.testing.assert_allclose(regions.boxes, [[0, 0, 20, 15]])


def test_labels_are_the_first_annotations_in_their_order() -> None:
    rows = [
        {"bbox": [10.0, 10.0, 5.0, 5.0], "bbox_mode": 1, "category_id": number}
        for number in (3, 1, 2, 0, 9)
    ]
    rows[1] = {"bbox": [70.0, 50.0, 99.0, 99.0], "bbox_mode": 0, "category_id": 1}
    regions = draw(
        RegionSampler(source="labels", **OPTIONS), record={**RECORD, "annotations": rows}
    )
    assert regions.classes.tolist() == [3, 1, 2, 0]
    np.testing.assert_allclose(regions.boxes[0], [10, 10, 15, 15])
    np.testing.assert_allclose(regions.boxes[1], [70, 50, 80, 60])


def test_a_picture_without_annotations_has_no_labelled_region() -> None:
    sampler = RegionSampler(source="labels", **OPTIONS)
    regions = draw(sampler, record={**RECORD, "annotations": []})
    assert regions.boxes.shape == (0, 4)
    assert regions.classes.shape == (0,)
    with pytest.raises(ValueError, match=r"image 5 has no annotations.*INPUT\.REGIONS\.SOURCE"):
        draw(sampler)


def test_proposals_without_a_file_name_their_key() -> None:
    with pytest.raises(ValueError, match="PROPOSAL_FILE"):
        ProposalFile("")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[1", "JSON"),
        ("{}", "annotations"),
        ('{"annotations": []}', "no box"),
        ("[]", "no box"),
        ('[{"image_id": 1}]', "bbox"),
    ],
)
def test_broken_proposal_files_are_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "p.json").write_text(text)
    with pytest.raises(ValueError, match=rf"p\.json.*{message}|{message}.*p\.json"):
        ProposalFile(tmp_path / "p.json")


def test_proposals_of_another_data_set_are_refused(tmp_path: Path) -> None:
    proposals = write(tmp_path / "p.json", [[0, 0, 9, 9]])
    with pytest.raises(ValueError, match="none|any of the 2"):
        proposals.check_images([1, 2])
    proposals.check_images([5, 6])


def test_random_regions_lie_in_the_picture_and_are_enlarged_for_the_teacher(rng) -> None:
    sampler = RegionSampler(
        source="random", max_boxes=50, box_size_range=(8.0, 1000.0), crop_enlarge=1.5
    )
    drawn = sampler.draw({"image_id": 1}, (100, 60), rng)
    sides = drawn.boxes[:, 2:] - drawn.boxes[:, :2]
    areas = sides.prod(1)
    assert len(areas) == 50
    assert drawn.boxes.min() >= 0
    assert (drawn.boxes[:, 2:] <= [100, 60]).all()
    assert areas.min() >= 8.0**2 * (1 - 1e-9)
    assert areas.max() <= 60.0**2 * (1 + 1e-9)
    assert (drawn.crop_boxes[:, :2] <= drawn.boxes[:, :2]).all()
    assert (drawn.crop_boxes - drawn.boxes).any()
