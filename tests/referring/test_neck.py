import pytest
import torch

from clipself_d2.referring.neck import (
    CoordConv,
    CrisNeck,
    add_coordinates,
    upsample,
)
from clipself_d2.referring.norms import norm_maker

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


def inputs(golden):
    return [golden["v3"], golden["v4"], golden["v5"]], golden["state"]


@torch.no_grad()
def test_fused_map_is_that_of_the_released_code(neck, golden):
    expected = golden("neck")
    torch.testing.assert_close(neck(*inputs(expected)), expected["fq_eval"], **TOLERANCE)


@torch.no_grad()
def test_training_pass_and_its_statistics_are_those_of_the_released_code(neck, golden):
    expected = golden("neck")
    fused = neck.train()(*inputs(expected))
    torch.testing.assert_close(fused, expected["fq_train"], **TOLERANCE)
    state = neck.state_dict()
    after = {k.removeprefix("after_train/"): k for k in expected if k.startswith("after_train/")}
    assert len(after) == 26
    for key, name in after.items():
        torch.testing.assert_close(state[key], expected[name], **TOLERANCE)


@torch.no_grad()
def test_coordinates_are_those_of_the_released_code(golden):
    expected = golden("coordconv")
    torch.testing.assert_close(
        add_coordinates(expected["x"]), expected["x_with_coord"], **TOLERANCE
    )
    module = CoordConv(4, 5, norm_maker("BN"))
    module.load_state_dict(
        {k.removeprefix("param/"): v for k, v in expected.items() if k.startswith("param/")}
    )
    torch.testing.assert_close(module.eval()(expected["x"]), expected["y"], **TOLERANCE)


def test_coordinates_run_from_minus_one_to_one_x_first():
    x, y = add_coordinates(torch.zeros(1, 0, 3, 5))[0]
    assert x[1].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0]
    assert y[:, 2].tolist() == [-1.0, 0.0, 1.0]


@torch.no_grad()
def test_another_sentence_gives_another_map(neck, golden):
    levels, state = inputs(golden("neck"))
    assert (neck(levels, state) - neck(levels, -state)).abs().max() > 1e-2


@torch.no_grad()
def test_doubling_keeps_the_mean():
    features = torch.randn(1, 2, 4, 6, generator=torch.Generator().manual_seed(0))
    doubled = upsample(features)
    assert doubled.shape == (1, 2, 8, 12)
    torch.testing.assert_close(doubled.mean(), features.mean(), rtol=0, atol=0.1)


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN"])
def test_every_norm_trains_on_one_process(norm, golden):
    module = CrisNeck(
        in_dims=(16, 32, 24), state_dim=24, out_dims=(8, 16, 32), make_norm=norm_maker(norm)
    )
    module(*inputs(golden("neck"))).square().mean().backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_group_norm_takes_a_single_pair(golden):
    module = CrisNeck(
        in_dims=(16, 32, 24), state_dim=24, out_dims=(8, 16, 32), make_norm=norm_maker("GN")
    )
    levels, state = inputs(golden("neck"))
    single = module([level[:1] for level in levels], state[:1])
    both = module(levels, state)
    torch.testing.assert_close(single, both[:1], **TOLERANCE)


@torch.no_grad()
@pytest.mark.parametrize("shares_space", [True, False])
def test_in_one_space_the_untrained_product_points_at_what_the_sentence_names(shares_space):
    torch.manual_seed(0)
    dims = {"in_dims": (4, 4, 16), "state_dim": 16, "out_dims": (4, 8, 64)}
    neck = CrisNeck(**dims, make_norm=norm_maker("BN"), shares_space=shares_space).eval()
    cells = torch.nn.functional.normalize(torch.randn(1, 16, 6, 6), dim=1)
    hits = 0
    for place in range(36):
        sentence = neck.txt_proj(cells.flatten(2)[:, :, place])[:, :, None, None]
        product = (neck.f1_v_proj(cells) * sentence).sum(dim=1).flatten()
        hits += int(product.argmax() == place)
    assert hits == 36 if shares_space else hits < 18
