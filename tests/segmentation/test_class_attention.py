"""Linear attention over classes, against its quadratic form."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from clipself_d2.segmentation.class_attention import ClassAggregation


def build(list_length: int) -> ClassAggregation:
    torch.manual_seed(0)
    module = ClassAggregation(
        dim=8, guide_dim=4, num_heads=2, list_length=list_length, pooling=1
    ).double()
    if list_length:
        nn.init.normal_(module.padding_cost)
        nn.init.normal_(module.padding_guide)
    return module


def test_copies_that_fill_a_list_count_as_many():
    module = build(9)
    cost = torch.randn(1, 4, 8, 2, 2, dtype=torch.double)
    guide = torch.randn(1, 4, 4, dtype=torch.double)
    # Five copies written out as classes, without a list to fill.
    written = build(0)
    written.load_state_dict(
        {k: v for k, v in module.state_dict().items() if not k.startswith("padding")}
    )
    copies = module.padding_cost[..., None, None].expand(1, 5, 8, 2, 2)
    long = torch.cat([cost, copies], 1)
    guides = torch.cat([guide, module.padding_guide.expand(1, 5, 4)], 1)
    torch.testing.assert_close(module(cost, guide), written(long, guides)[:, :4])


def test_weights_are_a_distribution_over_classes():
    module = build(0)
    rows = torch.randn(1, 1, 6, 8, dtype=torch.double)
    guide = torch.randn(1, 6, 4, dtype=torch.double)
    guided = torch.cat([rows, guide[:, None]], -1)
    query, key, value = module.query(guided), module.key(guided), module.value(rows)
    expected = []
    for head in (slice(0, 4), slice(4, 8)):
        weight = (F.elu(query[..., head]) + 1) @ (F.elu(key[..., head]) + 1).transpose(-1, -2)
        weight = weight / (weight.sum(-1, keepdim=True) + 1e-6)
        expected.append(weight @ value[..., head])
    torch.testing.assert_close(
        module._attend(rows, guide, 0).double(), torch.cat(expected, -1), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("grid", [(5, 7), (1, 1)])
def test_pooling_takes_any_grid(grid):
    module = build(0)
    cost = torch.randn(1, 3, 8, *grid, dtype=torch.double)
    assert module(cost, torch.randn(1, 3, 4, dtype=torch.double), 2).shape == cost.shape
