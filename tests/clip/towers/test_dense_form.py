"""Dense forms: identities between them, and attention written out by hand."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from clipself_d2.clip.towers.attention import Heads, merge_heads
from clipself_d2.clip.towers.blocks import BlockTower
from clipself_d2.clip.towers.contract import ALL_BLOCKS
from clipself_d2.clip.towers.dense_form import (
    DENSE_FORMS,
    DenseForm,
    dense_form,
    mix_values,
    neighbour_prior,
    proxy_affinity,
)

BARE = DenseForm(residual="none", mlp=False)
GRID = (3, 5)


def assert_close(got, expected):
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=2e-5)


@pytest.fixture
def picture():
    return torch.randn((2, 3, 48, 80), generator=torch.Generator().manual_seed(2))


def cells(tower, tokens):
    """The dense map of the last block's output."""
    embedding = F.normalize(tower.project(tokens[:, tower.num_prefix :]), dim=-1)
    return embedding.transpose(1, 2).unflatten(2, GRID)


def inputs_of_blocks(tower, picture):
    """Input of every block, and rotary positions."""
    tokens, rotary = tower.embed(picture)
    inputs = []
    for block in tower.block_modules:
        inputs.append(tokens)
        tokens = tower.run_block(block, tokens, rotary)
    return inputs, rotary


def softmax_of(left, right, scale):
    logits = left @ right.transpose(-1, -2)
    return (logits / left.shape[-1] ** 0.5 if scale else logits).softmax(-1)


@torch.no_grad()
def test_clipself_is_the_value_block_bit_by_bit(tower, picture):
    inputs, _ = inputs_of_blocks(tower, picture)
    block = tower.block_modules[-1]
    expected = tower.finish(block, inputs[-1], tower.value(block, inputs[-1]))
    assert torch.equal(tower.forward_dense(picture).embedding, cells(tower, expected))
    assert tower.forward_dense(picture).heads is None


@torch.no_grad()
@pytest.mark.parametrize("name", ["declip_qq", "declip_csa", "clearclip", "sclip", "naclip"])
def test_likeness_of_a_part_to_itself_by_hand(tower, picture, name):
    form = DENSE_FORMS[name]
    inputs, _ = inputs_of_blocks(tower, picture)
    block, tokens = tower.block_modules[-1], inputs[-1]
    heads = tower.heads(block, tokens, None)
    parts = {"qq": ["query"], "csa": ["query", "key"], "neighbour": ["key"]}[form.attention]
    weights = sum(softmax_of(getattr(heads, p), getattr(heads, p), form.scale) for p in parts)
    if name == "naclip":
        logits = heads.key @ heads.key.transpose(-1, -2) / heads.key.shape[-1] ** 0.5
        weights = (logits + neighbour_prior(GRID, 5.0, tower.num_prefix)).softmax(-1)
    added = tower.attended(block, merge_heads(weights @ heads.value))
    expected = tower.feed_forward(block, tokens + added) if form.mlp else added
    dense = tower.forward_dense(picture, form=name)
    assert_close(dense.embedding, cells(tower, expected))
    assert_close(dense.heads.query, heads.query[:, :, tower.num_prefix :])


@torch.no_grad()
def test_without_residual_and_mlp_only_the_projected_values_remain(tower, picture):
    inputs, _ = inputs_of_blocks(tower, picture)
    block = tower.block_modules[-1]
    expected = cells(tower, tower.attended(block, tower.value(block, inputs[-1])))
    assert_close(tower.forward_dense(picture, form="maskclip").embedding, expected)
    identity = torch.eye(15).expand(2, -1, -1)
    external = tower.forward_dense(picture, form="proxyclip", affinity=identity).embedding
    assert_close(external, expected)


@torch.no_grad()
def test_values_of_the_last_blocks_are_summed(tower, picture):
    inputs, _ = inputs_of_blocks(tower, picture)
    blocks = tower.block_modules
    added = [tower.attended(b, tower.value(b, x)) for b, x in zip(blocks, inputs, strict=True)]
    bare = tower.forward_dense(picture, form=replace(BARE, layers=2)).embedding
    assert_close(bare, cells(tower, added[1] + added[2]))
    inside = tower.forward_dense(picture, form="clipself3").embedding
    expected = tower.feed_forward(blocks[-1], inputs[-1] + sum(added))
    assert_close(inside, cells(tower, expected))


@torch.no_grad()
def test_equal_query_and_key_make_the_trained_attention_qq_and_half_of_csa(tower, picture):
    block = tower.block_modules[-1]
    if tower.shared_parameters(block):
        weight, bias = tower.shared_parameters(block)
        for parameter in (weight, bias):
            third = len(parameter) // 3
            parameter[:third] = parameter[third : 2 * third]
    else:
        block.attn.q_proj.weight.copy_(block.attn.k_proj.weight)
        block.attn.q_proj.bias.zero_()
    trained, qq, kk, csa = (
        tower.forward_dense(picture, form=replace(BARE, attention=kind, rotary=False))
        for kind in ("trained", "qq", "kk", "csa")
    )
    assert_close(qq.embedding, trained.embedding)
    assert_close(kk.embedding, trained.embedding)
    mixed = [
        mix_values(dense_form(name), csa.heads, grid=GRID, num_prefix=0)
        for name in ("declip_qq", "declip_csa")
    ]
    assert_close(mixed[1], 2 * mixed[0])


@pytest.mark.parametrize(
    ("kind", "total"), [("qq", 1), ("kk", 1), ("vv", 1), ("neighbour", 1), ("csa", 2)]
)
def test_rows_of_the_attention_sum_to_one_and_of_csa_to_two(kind, total):
    query, key = torch.randn(2, 2, 3, 16, 8)
    heads = Heads(query, key, torch.ones(2, 3, 16, 8))
    mixed = mix_values(replace(BARE, attention=kind), heads, grid=GRID, num_prefix=1)
    assert_close(mixed, torch.full_like(mixed, total))


def test_the_neighbours_prior_by_hand_and_at_its_limits():
    prior = neighbour_prior((2, 2), 1.0, num_prefix=1)
    near, far = torch.exp(torch.tensor([-0.5, -1.0]))
    assert_close(prior[1], torch.tensor([0.0, 1.0, near, near, far]))
    assert not prior[0].any()
    heads = Heads(*torch.randn(3, 2, 3, 15, 8))
    form = replace(BARE, attention="neighbour")
    wide, narrow, plain = (
        mix_values(f, heads, grid=GRID, num_prefix=0)
        for f in (replace(form, sigma=1e6), replace(form, sigma=1e-3), DenseForm("kk"))
    )
    assert_close(wide, plain)
    logits = heads.key @ heads.key.transpose(-1, -2) / 8**0.5 + torch.eye(15)
    assert_close(narrow, logits.softmax(-1) @ heads.value)


@torch.no_grad()
def test_a_new_gate_weights_by_half_which_the_final_norm_takes_back(tower, picture, new_clip):
    if hasattr(tower.visual, "trunk"):
        pytest.skip("the norm of EVA's values comes before its output projection")
    for block in tower.block_modules:
        block.attn.out_proj.bias.zero_()
    without = tower.forward_dense(picture, form=replace(BARE, layers=3)).embedding
    untrained = tower.forward_dense(picture, form="denserc").embedding
    assert_close(untrained, without)
    tower.set_dense_form("denserc")
    assert torch.equal(tower.forward_dense(picture).embedding, untrained)
    tower.gate.weight.normal_()
    assert not torch.allclose(tower.forward_dense(picture).embedding, untrained, atol=1e-2)
    # A gate that is wide open is none.
    tower.gate.weight.zero_()
    tower.gate.bias.fill_(50.0)
    assert_close(tower.forward_dense(picture).embedding, without)


@torch.no_grad()
@pytest.mark.parametrize("name", ["clipself", "maskclip", "clipself3", "denserc"])
def test_forms_without_attention_leave_every_cell_to_itself(tower, picture, name):
    form = DENSE_FORMS[name]
    tokens, rotary = tower.embed(picture)
    changed = tokens.clone()
    changed[:, 5] = tokens[:, 7]
    outputs = []
    for given in (tokens, changed):
        outputs.append(tower.run_form_block(tower.block_modules[2], given, rotary, GRID, form)[0])
    touched = (outputs[0] - outputs[1]).abs().amax((0, 2)) > 1e-6
    assert touched.nonzero().flatten().tolist() == [5]


@torch.no_grad()
@pytest.mark.parametrize("name", ["clipself3", "denserc"])
def test_values_of_earlier_blocks_leave_every_cell_to_itself(tower, picture, name, monkeypatch):
    def alone(tower, block, tokens, _):
        return tower.finish(block, tokens, tower.value(block, tokens))

    monkeypatch.setattr(BlockTower, "run_block", alone)
    embed, outputs = tower.embed, []
    for spoil in (False, True):

        def given(pixels, spoil=spoil):
            tokens, rotary = embed(pixels)
            tokens = tokens.clone()
            if spoil:
                tokens[:, tower.num_prefix + 5] = tokens[:, tower.num_prefix + 7]
            return tokens, rotary

        monkeypatch.setattr(tower, "embed", given)
        outputs.append(tower.forward_dense(picture, form=name).embedding.flatten(2))
    touched = (outputs[0] - outputs[1]).abs().amax((0, 1)) > 1e-6
    assert touched.nonzero().flatten().tolist() == [5]


@torch.no_grad()
def test_windows_act_in_the_last_block_of_a_form(tower, picture):
    whole, narrow = [], []
    for size, found in ((0, whole), (2, narrow)):
        tower.set_attention(window_size=size, global_blocks=[0, 1])
        found += [tower.forward_dense(picture, form=n).embedding for n in ("declip_qq", "naclip")]
    assert (whole[0] - narrow[0]).abs().max() > 1e-2
    # Neighbours have a window of their own.
    assert torch.equal(whole[1], narrow[1])


@pytest.mark.parametrize(
    ("name", "num_blocks"),
    [
        *((name, ALL_BLOCKS) for name in ("clipself3", "declip_csa", "clearclip", "naclip")),
        *(("denserc", 1), ("denserc", ALL_BLOCKS)),
    ],
)
def test_every_trainable_parameter_of_a_form_gets_a_gradient(tower, picture, name, num_blocks):
    tower.set_dense_form(name)
    tower.freeze(num_blocks)
    found = []
    for checkpointing in (False, True):
        tower.zero_grad()
        tower.checkpointing = checkpointing
        dense = tower.forward_dense(picture).embedding
        (dense * torch.linspace(-1, 1, dense.numel()).view_as(dense)).sum().backward()
        found.append({n: p.grad.clone() for n, p in tower.named_parameters() if p.grad is not None})
    trained = {n for n, p in tower.named_parameters() if p.requires_grad}
    assert set(found[0]) == trained
    assert all(gradient.abs().max() > 0 for gradient in found[0].values())
    torch.testing.assert_close(found[0], found[1])
    for parameter, rows in tower.idle_rows():
        assert not parameter.grad[rows].any()
        rest = torch.ones(len(parameter), dtype=torch.bool)
        rest[rows] = False
        # A bias of the key moves no softmax; in a likeness to itself it does.
        assert parameter.ndim == 1 or parameter.grad[rest].abs().amax(1).min() > 0


def test_the_gate_is_in_the_weights_of_the_forms_that_have_it(tower):
    plain = set(tower.state_dict())
    tower.set_dense_form("denserc")
    gate = {"visual.dense_gate.weight", "visual.dense_gate.bias"}
    assert set(tower.state_dict()) - plain == gate
    assert {tower.parameter_depths()[name] for name in gate} == {tower.num_blocks + 1}
    tower.freeze()
    assert not any(p.requires_grad for p in tower.parameters())
    tower.set_dense_form("clipself")
    assert set(tower.state_dict()) == plain


@torch.no_grad()
def test_a_proxy_gives_the_affinity(tower, picture):
    features = torch.randn(2, 7, 6, 10)
    expected = tower.forward_dense(
        picture, form="proxyclip", affinity=proxy_affinity(features, GRID)
    )
    seen = []
    tower.proxy = lambda pixels, grid: seen.append((pixels, grid)) or features
    assert torch.equal(tower.forward_dense(picture, form="proxyclip").embedding, expected.embedding)
    (pixels, grid) = seen[0]
    assert_close((pixels - 128.0) / 64.0, picture)
    assert grid == GRID
    tower.proxy = None
    with pytest.raises(ValueError, match="needs the affinity"):
        tower.forward_dense(picture, form="proxyclip")


def test_a_proxys_affinity_by_hand():
    # Two cells alike, one at a right angle: likenesses 1, 1, 0, of which the mean is 5/9.
    features = torch.tensor([[1.0, 2.0, 0.0], [0.0, 0.0, 3.0]])[None, :, None]
    first = torch.tensor([0.5, 0.5, 0.0])
    expected = torch.stack([first, first, torch.tensor([0.0, 0.0, 1.0])])[None]
    assert_close(proxy_affinity(features, (1, 3), beta=1.2), expected)
    # Nothing is below 0 times the mean.
    soft = torch.tensor([3.0, 3.0, 0.0]).softmax(0)
    assert_close(proxy_affinity(features, (1, 3), beta=0.0)[0, 0], soft)


def test_forms_know_their_names_and_their_limits(tower):
    assert all(str(form) == name and dense_form(name) is form for name, form in DENSE_FORMS.items())
    assert len(set(DENSE_FORMS.values())) == len(DENSE_FORMS)
    assert str(DenseForm(layers=2)).startswith("DenseForm(attention='identity'")
    with pytest.raises(ValueError, match="'cls', not one of"):
        tower.set_dense_form("cls")
    with pytest.raises(ValueError, match="sums 4 blocks, and .* has 3"):
        tower.set_dense_form(DenseForm(layers=4))
    with pytest.raises(ValueError, match="attention 'qk'"):
        DenseForm(attention="qk")
    with pytest.raises(ValueError, match="0 layers"):
        DenseForm(layers=0)
