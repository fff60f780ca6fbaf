import pytest
import torch
import torch.nn.functional as F

from clipself_d2.clip import load_tower
from clipself_d2.distillation.region_features import RegionFeatures, freeze_stages


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
    monkeypatch.setattr("clipself_d2.distillation.region_features.REGION_BATCH", 2)
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


def test_frozen_stages_and_norms_are_not_trained(resnet) -> None:
    freeze_stages(resnet, 2)
    trained = {name for name, p in resnet.named_parameters() if p.requires_grad}
    parts = {name.split(".")[1] for name in trained}
    assert parts == {"layer2", "layer3", "layer4", "attnpool"}
    assert not any("bn" in name or "downsample.1" in name for name in trained)
    resnet.train()
    assert not any(m.training for m in resnet.modules() if isinstance(m, torch.nn.BatchNorm2d))
    freeze_stages(resnet, 0)
    assert resnet.visual.conv1.weight.requires_grad


def test_a_stage_that_does_not_exist_names_the_key(resnet) -> None:
    with pytest.raises(ValueError, match=r"MODEL\.BACKBONE\.FREEZE_AT is 6"):
        freeze_stages(resnet, 6)
