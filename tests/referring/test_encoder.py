import pytest
import torch
from open_clip.modified_resnet import ModifiedResNet

from clipself_d2.clip.model import build_tower, load_tower
from clipself_d2.referring.encoder import ResNetLevels, ViTLevels, ViTResampling


def resnet_tower():
    torch.manual_seed(0)
    visual = ModifiedResNet([1, 1, 1, 1], 24, 4, image_size=64, width=8)
    return build_tower(visual, name="tiny", pixel_mean=(0, 0, 0), pixel_std=(1, 1, 1))


def vit_tower():
    torch.manual_seed(0)
    return load_tower("ViT-Ti-8-emoji")


def unfrozen(tower):
    tower.freeze(-1)
    return tower


def frozen(tower):
    tower.freeze()
    return tower


def test_resnet_levels_have_the_sizes_that_the_neck_reads():
    levels = ResNetLevels(tower=resnet_tower()).eval()
    maps = levels(torch.randn(2, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [(2, 64, 8, 12), (2, 128, 4, 6), (2, 24, 2, 3)]
    assert levels.channels == (64, 128, 24)
    assert levels.divisor == 32


def test_vit_levels_resampled_have_the_sizes_that_the_neck_reads():
    levels = ViTLevels(tower=vit_tower()).eval()
    maps = ViTResampling(levels.channels[0])(levels(torch.randn(2, 3, 32, 48)))
    assert [tuple(m.shape) for m in maps] == [(2, 128, 8, 12), (2, 128, 4, 6), (2, 128, 2, 3)]
    assert levels.divisor == 16


@torch.no_grad()
def test_vit_levels_are_the_blocks_and_the_dense_map_of_the_tower():
    tower = vit_tower()
    levels = ViTLevels(tower=tower)
    picture = torch.randn(1, 3, 32, 48)
    early, middle, dense = levels(picture)
    expected = tower.forward_dense(picture, (1, 3))
    assert torch.equal(early, expected.blocks[0])
    assert torch.equal(middle, expected.blocks[1])
    torch.testing.assert_close(dense, expected.embedding * 128**0.5)
    torch.testing.assert_close(dense.square().mean(), torch.tensor(1.0))


@pytest.mark.parametrize("share", [(12, (3, 7)), (24, (7, 15)), (6, (1, 3))])
def test_taps_lie_at_one_and_two_thirds(share):
    num_blocks, expected = share
    tower = vit_tower()
    tower.num_blocks = num_blocks
    assert ViTLevels(tower=tower).tap_blocks == expected


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_trained_backbone_has_a_gradient_for_every_trained_parameter(kind):
    if kind == "resnet":
        levels = ResNetLevels(tower=unfrozen(resnet_tower()))
    else:
        levels = ViTLevels(tower=unfrozen(vit_tower()))
    maps = levels.train()(torch.randn(2, 3, 64, 64))
    torch.stack([(m * torch.randn_like(m)).sum() for m in maps]).sum().backward()
    trained = {n: p for n, p in levels.named_parameters() if p.requires_grad}
    assert len(trained) > 10
    assert [name for name, parameter in trained.items() if parameter.grad is None] == []


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_a_frozen_tower_stays_as_it_is(kind):
    if kind == "resnet":
        levels = ResNetLevels(tower=frozen(resnet_tower())).train()
        expected = ["pool.connect.0.weight", "pool.connect.1.weight", "pool.connect.1.bias"]
    else:
        levels = ViTLevels(tower=frozen(vit_tower())).train()
        expected = []
    assert [n for n, p in levels.named_parameters() if p.requires_grad] == expected
    assert not levels.tower.training
    before = {key: value.clone() for key, value in levels.tower.state_dict().items()}
    levels(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[k]) for k, value in levels.tower.state_dict().items())


@pytest.mark.parametrize(("norm", "expected"), [("BN", True), ("SyncBN", True), ("GN", False)])
def test_norms_of_a_trained_resnet_learn_unless_their_statistics_stay(norm, expected):
    levels = ResNetLevels(tower=unfrozen(resnet_tower()), norm=norm)
    norms = [p for n, p in levels.tower.named_parameters() if ".bn" in n]
    assert norms
    assert {parameter.requires_grad for parameter in norms} == {expected}
    still = ResNetLevels(tower=frozen(resnet_tower()), norm=norm)
    assert not any(p.requires_grad for p in still.tower.parameters())


def test_group_norm_leaves_the_statistics_of_a_resnet_alone():
    levels = ResNetLevels(tower=resnet_tower(), norm="GN").train()
    assert levels.tower.norm == "FrozenBN"
    levels(torch.randn(1, 3, 64, 64))
    assert int(levels.tower.visual.bn1.num_batches_tracked) == 0


def test_one_block_is_too_few():
    with pytest.raises(ValueError, match=r"MODEL\.CLIP\.TAP_BLOCKS is \[2\]"):
        ViTLevels(tower=vit_tower(), tap_blocks=[2])
