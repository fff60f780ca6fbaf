import copy
import pickle

import pytest
import torch
from torch import nn

from clipself_d2.clip import load_tower
from clipself_d2.clip.precision import compute_context
from clipself_d2.clip.towers import tokens as tokens_module
from clipself_d2.clip.towers.held import Held, narrow_copy, working_blocks

CPU = torch.device("cpu")


@pytest.fixture
def source():
    return torch.ones(3)


def double(held, source, key=0):
    return held.get("double", key, (source,), lambda: 2 * source)


def test_a_value_is_made_once_until_its_source_or_key_changes(source):
    held = Held()
    first = double(held, source)
    assert double(held, source) is first
    assert double(held, source, key=1) is not first
    assert double(held, source, key=1) is double(held, source, key=1)
    source += 1
    assert double(held, source, key=1).tolist() == [4.0] * 3
    other = torch.zeros(3)
    assert double(held, other, key=1).tolist() == [0.0] * 3


def test_what_is_trained_is_made_anew_and_has_gradients(source):
    held = Held()
    trained = source.requires_grad_()
    assert double(held, trained) is not double(held, trained)
    assert double(held, trained).requires_grad


def test_values_of_inference_mode_stay_there(source):
    held = Held()
    with torch.inference_mode():
        inside = double(held, source)
    assert inside.is_inference()
    assert not double(held, source).is_inference()


def test_what_is_traced_is_not_held(source, monkeypatch):
    held = Held()
    monkeypatch.setattr("torch.compiler.is_compiling", lambda: True)
    traced = double(held, source)
    monkeypatch.undo()
    assert double(held, source) is not traced


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda held: pickle.loads(pickle.dumps(held))])
def test_copies_begin_with_nothing(source, copied):
    held = Held()
    first = double(held, source)
    assert double(copied(held), source) is not first


def test_a_narrow_copy_has_narrow_matrices_and_wide_norms():
    block = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.MultiheadAttention(4, 2))
    twin = narrow_copy(block, torch.bfloat16)
    assert {n for n, p in twin.named_parameters() if p.dtype == torch.float32} == {
        "0.weight",
        "0.bias",
    }
    assert all(parameter.dtype == torch.float32 for parameter in block.parameters())


def test_trained_blocks_and_blocks_outside_of_an_autocast_are_themselves():
    blocks, held = [nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)], Held()
    assert working_blocks(blocks, held, None) == blocks
    first, second = working_blocks(blocks, held, torch.bfloat16)
    assert first is blocks[0]
    assert second.weight.dtype == torch.bfloat16
    assert second.training
    blocks[1].eval()
    assert not working_blocks(blocks, held, torch.bfloat16)[1].training
    with torch.no_grad():
        blocks[1].weight.zero_()
    assert not working_blocks(blocks, held, torch.bfloat16)[1].weight.any()


@torch.no_grad()
@pytest.mark.parametrize("dense", [True, False])
def test_narrow_weights_give_a_frozen_tower_the_embeddings_of_autocast_bit_for_bit(dense):
    torch.manual_seed(0)
    tower = load_tower("ViT-Ti-8-emoji", precision="bf16")
    images = torch.randn(2, 3, 48, 64)

    def embed():
        return tower.forward_dense(images).embedding if dense else tower.forward_image(images)

    tower.requires_grad_(True)
    expected = embed()
    tower.requires_grad_(False)
    assert torch.equal(embed(), expected)
    # The names of what is saved are the same.
    assert not [name for name in tower.state_dict() if not name.startswith("visual.")]
    with compute_context(CPU, "bf16"):
        narrow = tower._working_blocks(images)[0]
    assert narrow.mlp.c_fc.weight.dtype == torch.bfloat16


def test_frozen_positions_are_resized_once_and_trained_ones_each_time(monkeypatch):
    calls, resize = [], tokens_module.resize_positions
    monkeypatch.setattr(
        tokens_module, "resize_positions", lambda *a, **k: calls.append(1) or resize(*a, **k)
    )
    tower = load_tower("ViT-Ti-8-emoji")
    images = torch.randn(1, 3, 48, 64)
    for blocks, expected in ((2, 1), (-1, 4)):
        tower.freeze(blocks)
        for _ in range(3):
            tower.forward_dense(images)
        assert len(calls) == expected
    # The weights of another file are seen.
    tower.freeze(0)
    before = tower.forward_dense(images).embedding
    state = {key: value + 0.1 for key, value in tower.state_dict().items()}
    tower.load_state_dict(state)
    assert not torch.equal(tower.forward_dense(images).embedding, before)
