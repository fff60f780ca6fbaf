import pytest
import torch
import torch.nn.functional as F

from clipself_d2.clip import load_tower
from clipself_d2.distillation.region_features import RegionFeatures, whole_frame


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
