"""Depth of every parameter of a tower."""

import pytest

from clipself_d2.clip.model import load_tower
from clipself_d2.clip.towers.depth import depth_of_parameters


@pytest.fixture(scope="module")
def tower():
    return load_tower("ViT-Ti-8-emoji", None)


def test_every_parameter_has_a_depth(tower):
    depth = depth_of_parameters(tower)
    assert set(depth) == {name for name, _ in tower.named_parameters()}
    assert set(depth.values()) == set(range(tower.num_blocks + 2))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("visual.conv1.weight", 0),
        ("visual.class_embedding", 0),
        ("visual.positional_embedding", 0),
        ("visual.ln_pre.weight", 0),
        ("visual.transformer.resblocks.0.ln_1.weight", 1),
        ("visual.transformer.resblocks.5.mlp.c_proj.bias", 6),
        ("visual.ln_post.weight", 7),
        ("visual.proj", 7),
    ],
)
def test_depth_follows_the_way_of_an_image(tower, name, expected):
    assert depth_of_parameters(tower)[name] == expected


def test_depth_of_timm_trunks(new_clip):
    tower = new_clip("eva").tower
    depth = depth_of_parameters(tower)
    assert depth["visual.trunk.patch_embed.proj.weight"] == 0
    assert depth["visual.trunk.blocks.0.norm1.weight"] == 1
    last = [name for name, number in depth.items() if number == tower.num_blocks + 1]
    assert last
    assert all(
        name.startswith(
            ("visual.trunk.norm", "visual.trunk.fc_norm", "visual.trunk.head", "visual.head")
        )
        for name in last
    )
