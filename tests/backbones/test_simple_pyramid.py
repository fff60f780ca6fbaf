"""ViTDet's pyramid: what each level reads, its size, and what is trained."""

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.structures import ImageList

from clipself_d2.backbones import ClipViT, ClipViTSimplePyramid


def make_pyramid(tower, **options) -> ClipViTSimplePyramid:
    torch.manual_seed(1)
    vit = ClipViT(tower=tower, tap_blocks=[3], trainable_blocks=options.pop("trainable_blocks", 0))
    return ClipViTSimplePyramid(backbone=vit, out_channels=32, **options)


@pytest.mark.parametrize("patch_size", [8, 14, 16])
@pytest.mark.parametrize("size", [(64, 96), (50, 71)])
def test_output_shape_is_true(make_tower, patch_size, size):
    pyramid = make_pyramid(make_tower(patch_size=patch_size)).eval()
    features = pyramid(torch.randn(2, 3, *size))
    shapes = pyramid.output_shape()
    assert list(features) == list(shapes) == ["p2", "p3", "p4", "p5", "p6", "clip"]
    for name, spec in shapes.items():
        cells = tuple(-(-side // spec.stride) for side in size)
        assert features[name].shape == (2, spec.channels, *cells), name


def test_levels_read_the_last_block_and_not_each_other(make_tower):
    tower = make_tower(patch_size=16)
    pyramid = make_pyramid(tower).eval()
    images = torch.randn(1, 3, 64, 64)
    last = tower.forward_dense(images, [3]).blocks[0]
    features = pyramid(images)
    torch.testing.assert_close(features["p4"], pyramid.outputs[2](last), rtol=0, atol=0)
    with torch.no_grad():
        for parameter in pyramid.outputs[3].parameters():
            parameter.zero_()
    again = pyramid(images)
    assert again["p5"].abs().max() == 0
    torch.testing.assert_close(again["p2"], features["p2"], rtol=0, atol=0)


def test_going_up_halves_the_channels(make_tower):
    pyramid = make_pyramid(make_tower(patch_size=16))
    widths = [
        module.out_channels
        for module in pyramid.scalers[0]
        if isinstance(module, torch.nn.ConvTranspose2d)
    ]
    assert widths == [16, 8]


def test_detectron2_pads_to_whole_patches(make_tower):
    pyramid = make_pyramid(make_tower(patch_size=16))
    batch = ImageList.from_tensors(
        [torch.zeros(3, 50, 70)],
        pyramid.size_divisibility,
        padding_constraints=pyramid.padding_constraints,
    )
    assert batch.tensor.shape[-2:] == (64, 80)


def test_every_parameter_of_a_trained_tower_learns(make_tower):
    pyramid = make_pyramid(make_tower(patch_size=16), trainable_blocks=-1).train()
    features = pyramid(torch.randn(2, 3, 64, 64))
    sum(features[name].square().sum() for name in ("p2", "p3", "p4", "p5")).backward()
    for name, parameter in pyramid.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_wrong_strides_name_the_key(make_tower):
    with pytest.raises(ValueError, match="MODEL.CLIP_FPN.STRIDES"):
        make_pyramid(make_tower(), strides=[4, 12])


@pytest.mark.parametrize(("taps", "trained"), [([], 0), ([1], 1), ([1], -1)])
def test_a_block_that_is_not_read_is_refused(make_tower, taps, trained):
    vit = ClipViT(tower=make_tower(), tap_blocks=taps, trainable_blocks=trained)
    with pytest.raises(ValueError, match="MODEL.CLIP.TAP_BLOCKS"):
        ClipViTSimplePyramid(backbone=vit)


def test_yaml_sets_the_options(clip_cfg):
    clip_cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    clip_cfg.MODEL.RPN.IN_FEATURES = ["p3", "p4"]
    clip_cfg.MODEL.BACKBONE.NAME = "build_clip_vit_simple_fpn_backbone"
    clip_cfg.MODEL.CLIP_FPN.STRIDES = [8, 16]
    clip_cfg.MODEL.FPN.NORM = "LN"
    pyramid = build_backbone(clip_cfg)
    assert isinstance(pyramid, ClipViTSimplePyramid)
    assert pyramid.bottom_up.tap_blocks == (5,)
    assert pyramid.strides == (8, 16)
    assert pyramid.output_shape()["p3"].channels == 32
