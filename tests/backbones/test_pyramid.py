"""ClipViTPyramid: strides, alignment, F-ViT's adapters, and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling import FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from detectron2.modeling.poolers import ROIPooler
from detectron2.structures import Boxes, ImageList
from torch import nn

from clipself_d2.backbones import ClipViT, ClipViTPyramid
from clipself_d2.backbones.levels import resample
from clipself_d2.backbones.pyramid import make_adapter, spread_blocks

STRIDES = (4, 8, 16, 32)


def make_pyramid(tower, *, strides=STRIDES, taps=None, trainable_blocks=0, norm="GN", square=0):
    torch.manual_seed(1)
    taps = spread_blocks(tower.num_blocks, len(strides)) if taps is None else taps
    backbone = ClipViT(tower=tower, tap_blocks=taps, trainable_blocks=trainable_blocks)
    return ClipViTPyramid(
        backbone=backbone, strides=strides, out_channels=32, norm=norm, square_size=square
    )


def kinds(module: nn.Module) -> list[str]:
    return [type(layer).__name__ for layer in (module if len([*module.children()]) else [module])]


def test_adapters_of_patch_16_are_those_of_fvit():
    times4, times2, same, half = (make_adapter(32, 16, stride, "SyncBN") for stride in STRIDES)
    assert kinds(times4) == ["ConvTranspose2d", "SyncBatchNorm", "GELU", "ConvTranspose2d"]
    assert kinds(times2) == ["ConvTranspose2d"]
    assert len(same) == 0
    assert kinds(half) == ["MaxPool2d"]
    for layer in (times4[0], times4[3], times2[0]):
        assert (layer.kernel_size, layer.stride) == ((2, 2), (2, 2))
        assert layer.bias is not None
    map_NCHW = torch.randn(1, 32, 4, 6)
    torch.testing.assert_close(half(map_NCHW), F.max_pool2d(map_NCHW, 2), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("patch_size", "factors"),
    [(8, (2, 1, 1 / 2, 1 / 4)), (14, (4, 2, 1, 1 / 2)), (16, (4, 2, 1, 1 / 2)), (32, (8, 4, 2, 1))],
)
def test_adapters_scale_by_the_nearest_power_of_two(patch_size, factors):
    map_NCHW = torch.randn(1, 32, 8, 12)
    for stride, factor in zip(STRIDES, factors, strict=True):
        adapted = make_adapter(32, patch_size, stride, "LN")(map_NCHW)
        assert adapted.shape == (1, 32, 8 * factor, 12 * factor)


@pytest.mark.parametrize(
    ("num_blocks", "num_taps", "expected"),
    [(12, 4, [2, 5, 8, 11]), (24, 4, [5, 11, 17, 23]), (6, 2, [2, 5]), (2, 4, [0, 0, 1, 1])],
)
def test_default_taps_are_spread_and_end_with_the_last_block(num_blocks, num_taps, expected):
    assert spread_blocks(num_blocks, num_taps) == expected


@pytest.mark.parametrize(("source", "target"), [(3.5, 4), (7, 8), (14, 16), (28, 32), (12, 8)])
@pytest.mark.parametrize("side", [84, 100, 224])
def test_resampled_cells_stay_where_they_are_in_the_image(source, target, side):
    cells = -(-side // target)
    centres = source * (torch.arange(-(-side // source)) + 0.5)
    ramp = centres.expand(1, 1, len(centres), -1).contiguous()
    resampled = resample(ramp, source, target, (cells, cells))
    expected = target * (torch.arange(cells) + 0.5)
    # Beyond the centre of the last cell the map ends and is repeated.
    expected = expected.clamp(float(centres[0]), float(centres[-1]))
    torch.testing.assert_close(resampled[0, 0, 0], expected)
    torch.testing.assert_close(
        resample(ramp.transpose(2, 3), source, target, (cells, cells)), resampled.transpose(2, 3)
    )


def test_equal_strides_are_cropped_not_resampled():
    map_NCHW = torch.randn(1, 2, 5, 6)
    torch.testing.assert_close(
        resample(map_NCHW, 16, 16, (4, 6)), map_NCHW[:, :, :4], rtol=0, atol=0
    )


@pytest.mark.parametrize("patch_size", [8, 14, 16])
@pytest.mark.parametrize("size", [(84, 56), (64, 96), (75, 101)])
def test_levels_have_their_true_stride_for_any_image(make_tower, patch_size, size):
    pyramid = make_pyramid(make_tower(patch_size))
    features = pyramid(torch.randn(1, 3, *size))
    shapes = pyramid.output_shape()
    assert list(features) == list(shapes) == ["p2", "p3", "p4", "p5", "p6", "clip"]
    for name, spec in shapes.items():
        cells = tuple(-(-side // spec.stride) for side in size)
        assert features[name].shape == (1, spec.channels, *cells), name
    assert [shapes[f"p{level}"].stride for level in range(2, 7)] == [4, 8, 16, 32, 64]
    assert shapes["clip"] == ShapeSpec(channels=16, stride=patch_size)


def set_to_pass_values_through(pyramid: ClipViTPyramid) -> None:
    """Make upsampling repeat cells, and convolutions copy channels; nothing comes from above."""
    eye = torch.eye(32)
    for module in pyramid.modules():
        if isinstance(module, nn.ConvTranspose2d):
            module.weight.data.copy_(eye[:, :, None, None].expand_as(module.weight))
            module.bias.data.zero_()
    for adapter in pyramid.adapters:
        if len([*adapter.children()]) == 3:
            adapter[1] = nn.Identity()
    for conv in (*pyramid.laterals, *pyramid.outputs):
        middle = conv.kernel_size[0] // 2
        conv.weight.data.zero_()
        conv.weight.data[:, :, middle, middle] = eye
        conv.bias.data.zero_()


@pytest.mark.parametrize("patch_size", [8, 14, 16])
def test_every_level_sees_the_image_at_the_right_place(make_tower, patch_size, monkeypatch):
    pyramid = make_pyramid(make_tower(patch_size), norm="")
    set_to_pass_values_through(pyramid)
    size = math.lcm(patch_size, STRIDES[-1])
    x = patch_size * (torch.arange(size // patch_size) + 0.5)
    ramp = x.expand(1, 32, len(x), -1)

    def only(level):
        outputs = {f"block{i}": ramp * (i == level) for i in range(4)}
        return {**outputs, "clip": ramp}

    for level, stride in enumerate(STRIDES):
        monkeypatch.setattr(pyramid.bottom_up, "forward", lambda images, i=level: only(i))
        with torch.no_grad():
            got = pyramid(torch.zeros(1, 3, size, size))[f"p{level + 2}"][0, 0, 0]
        centres = stride * (torch.arange(size // stride) + 0.5)
        # Repeated cells know the position to half a patch; pooling takes the rightmost of a cell.
        assert (got - centres).abs().max() <= max(patch_size, stride) / 2 + 1e-3
        assert (got.diff() >= -1e-3).all()


class AdaptedTaps(Backbone):
    """The input of FPN: taps at their levels' strides, computed before."""

    def __init__(self, taps: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.taps = taps

    def forward(self, images):
        return self.taps

    def output_shape(self):
        return {f"tap{stride}": ShapeSpec(channels=32, stride=stride) for stride in STRIDES}


def test_levels_equal_those_of_detectron2s_fpn(make_tower):
    pyramid = make_pyramid(make_tower(16)).eval()
    images = torch.randn(1, 3, 64, 96)
    taps = [feature for name, feature in pyramid.bottom_up(images).items() if name != "clip"]
    with torch.no_grad():
        adapted = [adapter(tap) for adapter, tap in zip(pyramid.adapters, taps, strict=True)]
    names = [f"tap{stride}" for stride in STRIDES]
    bottom_up = AdaptedTaps(dict(zip(names, adapted, strict=True)))
    fpn = FPN(bottom_up, names, 32, norm="GN", top_block=LastLevelMaxPool()).eval()
    for level in range(4):
        getattr(fpn, f"fpn_lateral{level + 2}").load_state_dict(
            pyramid.laterals[level].state_dict()
        )
        getattr(fpn, f"fpn_output{level + 2}").load_state_dict(pyramid.outputs[level].state_dict())
    with torch.no_grad():
        features, expected = pyramid(images), fpn(images)
    assert list(expected) == ["p2", "p3", "p4", "p5", "p6"]
    for name, level in expected.items():
        torch.testing.assert_close(features[name], level)


def test_convolutions_start_from_caffe2s_xavier(make_tower):
    pyramid = make_pyramid(make_tower(16), norm="")
    for conv in (*pyramid.laterals, *pyramid.outputs):
        fan_in = conv.weight[0].numel()
        assert conv.weight.abs().max() <= (3.0 / fan_in) ** 0.5 + 1e-6
        assert conv.weight.std().item() == pytest.approx(fan_in**-0.5, rel=0.1)
        assert conv.bias.abs().max() == 0


def test_last_level_takes_every_second_cell(make_tower):
    features = make_pyramid(make_tower(8))(torch.randn(1, 3, 96, 160))
    torch.testing.assert_close(features["p6"], features["p5"][..., ::2, ::2], rtol=0, atol=0)


def test_clip_map_passes_unchanged(make_tower):
    pyramid = make_pyramid(make_tower(16)).train()
    images = torch.randn(1, 3, 64, 96)
    expected = pyramid.bottom_up.tower.forward_dense(images).embedding
    torch.testing.assert_close(pyramid(images)["clip"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("patch_size", [8, 14, 16, 32])
def test_detectron2_pads_to_whole_patches(make_tower, patch_size):
    pyramid = make_pyramid(make_tower(patch_size))
    assert pyramid.size_divisibility == patch_size
    for constraints in (None, pyramid.padding_constraints):
        images = ImageList.from_tensors(
            [torch.zeros(3, 50, 71)], pyramid.size_divisibility, padding_constraints=constraints
        )
        assert tuple(images.tensor.shape[-2:]) == tuple(
            -(-side // patch_size) * patch_size for side in (50, 71)
        )


@pytest.mark.parametrize(("patch_size", "side"), [(16, 96), (14, 98), (14, 112)])
def test_detectron2_pads_to_the_square_at_the_right_and_bottom(make_tower, patch_size, side):
    pyramid = make_pyramid(make_tower(patch_size), square=side)
    pictures = [torch.ones(3, 50, 71), torch.ones(3, 64, 30)]
    for given in (pictures, pictures[:1]):
        images = ImageList.from_tensors(given, padding_constraints=pyramid.padding_constraints)
        assert tuple(images.tensor.shape[-2:]) == (side, side)
        assert images.image_sizes[0] == (50, 71)
        assert images.tensor[0, :, :50, :71].min() == 1
        assert images.tensor.sum() == sum(picture.sum() for picture in given)
    levels = pyramid(images.tensor)
    assert [tuple(levels[name].shape[-2:]) for name in ("p2", "p5")] == [
        (-(-side // 4), -(-side // 4)),
        (-(-side // 32), -(-side // 32)),
    ]


def test_fewer_levels_need_as_many_taps(make_tower):
    pyramid = make_pyramid(make_tower(8), strides=[8, 16], taps=[1, 3])
    features = pyramid(torch.randn(1, 3, 48, 80))
    assert {name: tuple(feature.shape[2:]) for name, feature in features.items()} == {
        "p3": (6, 10),
        "p4": (3, 5),
        "p5": (2, 3),
        "clip": (6, 10),
    }


@pytest.mark.parametrize(("patch_size", "trainable_blocks"), [(8, 0), (14, 1), (16, 0), (16, 2)])
def test_every_trainable_parameter_gets_a_gradient(make_tower, patch_size, trainable_blocks):
    pyramid = make_pyramid(make_tower(patch_size), trainable_blocks=trainable_blocks).train()
    features = pyramid(torch.randn(2, 3, 64, 96))
    torch.manual_seed(2)
    levels = [feature for name, feature in features.items() if name.startswith("p")]
    sum((level * torch.randn_like(level)).sum() for level in levels).backward()
    trainable = [(name, p) for name, p in pyramid.named_parameters() if p.requires_grad]
    assert any(name.startswith("bottom_up") for name, _ in trainable) == (trainable_blocks > 0)
    for name, parameter in trainable:
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_detectron2_pools_the_levels_of_a_patch_14_tower(make_tower):
    pyramid = make_pyramid(make_tower(14))
    shapes = pyramid.output_shape()
    names = ["p2", "p3", "p4", "p5"]
    pooler = ROIPooler(7, [1.0 / shapes[name].stride for name in names], 0, "ROIAlignV2")
    features = pyramid(torch.randn(1, 3, 224, 224))
    boxes = Boxes(torch.tensor([[0.0, 0.0, 30.0, 40.0], [10.0, 20.0, 220.0, 200.0]]))
    pooled = pooler([features[name] for name in names], [boxes])
    assert pooled.shape == (2, 32, 7, 7)
    assert pooled.isfinite().all()


def test_query_and_key_of_evas_last_block_are_not_waited_for(make_eva_tower):
    pyramid = make_pyramid(make_eva_tower(), trainable_blocks=1).train()
    features = pyramid(torch.randn(1, 3, 56, 84))
    sum(level.square().sum() for name, level in features.items() if name != "clip").backward()
    names = {name for name, p in pyramid.bottom_up.named_parameters() if p.requires_grad}
    assert any("blocks.3.attn.v_proj" in name for name in names)
    assert not any("q_proj" in name or "k_proj" in name for name in names)
    for name, parameter in pyramid.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


def test_mixed_precision_of_the_trainer_reaches_the_tower_and_keeps_its_map_float32(make_tower):
    pyramid = make_pyramid(make_tower(14)).train()
    images = torch.randn(1, 3, 64, 96)
    plain = pyramid(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = pyramid(images)
    assert mixed["clip"].dtype == torch.float32
    assert not torch.equal(mixed["clip"], plain["clip"])
    for level in ("clip", "p2", "p6"):
        assert F.cosine_similarity(mixed[level].float(), plain[level]).min() > 0.99


@pytest.mark.parametrize("norm", ["SyncBN", "naiveSyncBN", "BN", "FrozenBN", "GN", "LN", ""])
def test_every_norm_trains_in_one_process_on_a_cpu(make_tower, norm):
    pyramid = make_pyramid(make_tower(16), norm=norm).train()
    pyramid(torch.randn(2, 3, 64, 64))["p2"].sum().backward()
    assert pyramid.adapters[0][0].weight.grad.isfinite().all()


def test_sync_bn_of_one_process_is_bn(make_tower):
    images = torch.randn(2, 3, 64, 64)
    synced, plain = (make_pyramid(make_tower(16), norm=n).train() for n in ("SyncBN", "BN"))
    torch.testing.assert_close(synced(images), plain(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strides": [4, 8, 16]}, "3 levels; MODEL.CLIP.TAP_BLOCKS"),
        ({"strides": [4, 8, 12, 32]}, "powers of two"),
        ({"strides": [32, 16, 8, 4]}, "ascending"),
        ({"strides": [], "taps": []}, "powers of two"),
        ({"taps": [0, 1, 2, 2], "trainable_blocks": 1}, "no level reads block 3"),
    ],
)
def test_wrong_levels_name_the_key(make_tower, options, message):
    with pytest.raises(ValueError, match=message):
        make_pyramid(make_tower(16), **{"taps": [0, 1, 2, 3], **options})
