import pytest
import torch
import torch.nn.functional as F
from detectron2.structures import Boxes, Instances

from clipself_d2.clip import load_tower
from clipself_d2.distillation.regions import RegionFeatures, RegionProposer, whole_frame


@pytest.fixture
def images():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def frame(size=64.0):
    return torch.tensor([[0.0, 0.0, size, size]])


@torch.no_grad()
def test_the_whole_picture_as_a_region_of_a_resnet_is_its_embedding(resnet, images) -> None:
    features = RegionFeatures.extract(resnet, images)
    pooled = features.pool([frame(), frame()])
    torch.testing.assert_close(pooled, resnet.forward_image(images), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_regions_of_a_resnet_do_not_depend_on_the_size_of_their_batch(
    resnet, images, monkeypatch
) -> None:
    boxes = [torch.tensor([[0.0, 0, 30, 40], [10, 10, 60, 50], [5, 20, 64, 64]]), frame()]
    features = RegionFeatures.extract(resnet, images)
    together = features.pool(boxes)
    monkeypatch.setattr("clipself_d2.clip.towers.resnet.REGION_BATCH", 2)
    torch.testing.assert_close(features.pool(boxes), together, rtol=1e-4, atol=1e-5)
    assert len(together) == 4


@torch.no_grad()
def test_no_region_of_a_resnet_is_an_empty_row(resnet, images) -> None:
    pooled = RegionFeatures.extract(resnet, images).pool([torch.zeros(0, 4)] * 2)
    assert pooled.shape == (0, 24)


@torch.no_grad()
def test_regions_of_a_vit_are_means_of_its_dense_map(images) -> None:
    tower = load_tower("ViT-Ti-8-emoji")
    features = RegionFeatures.extract(tower, images)
    pooled = features.pool([frame(), torch.tensor([[8.0, 16.0, 16.0, 24.0]])])
    expected = torch.stack([features.dense()[0].mean((1, 2)), features.dense()[1, :, 2, 1]])
    torch.testing.assert_close(pooled, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_dense_map_of_a_resnet_has_unit_cells_of_its_patch_size(resnet, images) -> None:
    dense = RegionFeatures.extract(resnet, images).dense()
    assert dense.shape == (2, 24, 64 // resnet.patch_size, 64 // resnet.patch_size)
    norms = dense.norm(dim=1)
    torch.testing.assert_close(norms, torch.ones_like(norms))
    raw = resnet.pool_dense(resnet.forward_stages(images)["res5"])
    torch.testing.assert_close(dense, F.normalize(raw, dim=1))


def test_the_padding_of_the_batch_is_not_in_a_pictures_own_frame() -> None:
    assert whole_frame(torch.zeros(3, 48, 64)).tolist() == [[0.0, 0.0, 64.0, 48.0]]


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
