import pytest
import torch
from detectron2.structures import Boxes, Instances

from clipself_d2.distillation.region_proposer import RegionProposer

FOUND = torch.tensor([[0.0, 0, 20, 20], [20, 0, 50, 30], [5, 5, 40, 40], [0, 0, 64, 48]])


class Network(torch.nn.Module):
    def __init__(self, boxes: torch.Tensor = FOUND) -> None:
        super().__init__()
        self.boxes = boxes

    def forward(self, images):
        return [Instances(image.shape[1:], proposal_boxes=Boxes(self.boxes)) for image in images]


@pytest.fixture
def items(make_item):
    return [
        {k: v for k, v in make_item(seed).items() if k not in ("boxes", "crops")} | {"count": seed}
        for seed in (0, 1, 2)
    ]


def propose(items, **options):
    network = options.pop("network", None) or Network()
    return RegionProposer(network, **options)(items)


def test_regions_are_drawn_from_the_proposals_and_items_left_alone(items) -> None:
    known = {tuple(box) for box in FOUND.tolist()}
    for item in propose(items, max_regions=3):
        drawn = {tuple(box) for box in item["boxes"].tolist()}
        assert len(drawn) == 3
        assert drawn < known
        assert "crops" not in item
    assert all("boxes" not in item for item in items)


def test_the_draw_depends_on_the_seed_and_not_on_the_parts_of_a_batch(items) -> None:
    first, second, other = (
        torch.stack([item["boxes"] for item in propose(items, max_regions=2, seed=seed)])
        for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert not torch.equal(first[0], first[1])
    proposer = RegionProposer(Network(), max_regions=2, seed=1)
    parts = proposer(items[1:]) + proposer(items[:1])
    assert torch.equal(torch.stack([item["boxes"] for item in parts]), first[[1, 2, 0]])


@pytest.mark.parametrize(("factor", "sides"), [(1.0, (10, 20)), (1.5, (15, 30)), (9.0, (48, 64))])
def test_crops_exceed_their_regions_as_asked(items, factor, sides) -> None:
    box = torch.tensor([[10.0, 10, 30, 20]])
    (item,) = propose(items[:1], network=Network(box), crop_enlarge=factor)
    (piece,) = item["crops"]
    # A side may gain or lose a pixel by rounding.
    assert all(abs(a - b) <= 1 for a, b in zip(piece.shape[1:], sides, strict=True))
    assert torch.equal(item["boxes"], box)


def test_a_picture_without_a_proposal_is_a_region_itself(items) -> None:
    (item,) = propose(items[:1], network=Network(torch.zeros(0, 4)))
    assert item["boxes"].tolist() == [[0.0, 0.0, 64.0, 48.0]]
