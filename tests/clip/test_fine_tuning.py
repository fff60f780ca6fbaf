"""Which weights a rule leaves to learn."""

import pytest
import torch

from clipself_d2.clip import load_clip, load_tower
from clipself_d2.clip.fine_tuning import restrict_training


def trained(module: torch.nn.Module) -> set[str]:
    return {name for name, p in module.named_parameters() if p.requires_grad}


def test_query_and_value_of_both_towers_learn():
    clip = load_clip("ViT-Ti-8-emoji")
    for tower in (clip.tower, clip.text):
        tower.freeze(-1, parts="query_value")
    held = [*clip.tower.held_rows, *clip.text.held_rows]
    names = trained(clip.tower) | trained(clip.text)
    assert all(name.endswith("attn.in_proj_weight") for name in names)
    assert len(held) == len(trained(clip.tower)) + len(trained(clip.text))
    for parameter, rows in held:
        width = parameter.shape[1]
        assert (rows.start, rows.stop) == (width, 2 * width)


def test_blocks_that_freeze_leaves_out_stay_out():
    tower = load_tower("ViT-Ti-8-emoji")
    tower.freeze(1)
    restrict_training(tower, "query_value")
    (name,) = trained(tower)
    assert f".{tower.num_blocks - 1}.attn." in name


def test_attention_includes_biases_and_all_changes_nothing():
    tower = load_tower("ViT-Ti-8-emoji")
    tower.freeze(-1)
    before = trained(tower)
    assert restrict_training(tower, "all") == []
    assert trained(tower) == before
    assert restrict_training(tower, "attention") == []
    assert trained(tower) == {name for name in before if ".attn." in name}
    assert any(name.endswith("out_proj.bias") for name in trained(tower))


def test_rows_of_the_key_get_no_gradient():
    tower = load_tower("ViT-Ti-8-emoji")
    tower.freeze(-1)
    held = restrict_training(tower, "query_value")
    tower.forward_dense(torch.rand(1, 3, 32, 32)).embedding.square()[:, 0].sum().backward()
    for parameter, rows in held:
        assert not parameter.grad[rows].any()
        assert parameter.grad[rows.stop :].any()


def test_freeze_takes_the_rule_and_begins_afresh():
    tower = load_tower("ViT-Ti-8-emoji")
    tower.set_dense_form("attention")
    tower.freeze(-1, parts="query_value")
    assert len(trained(tower)) == tower.num_blocks == len(tower.held_rows)
    tower.freeze(-1)
    tower.forward_dense(torch.rand(1, 3, 32, 32)).embedding.square()[:, 0].sum().backward()
    weight = tower.shared_parameters(tower.block_modules[-1])[0]
    assert weight.grad[tower.width : 2 * tower.width].any()
    assert not tower.held_rows


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="rule is 'some'"):
        restrict_training(torch.nn.Linear(1, 1), "some")
