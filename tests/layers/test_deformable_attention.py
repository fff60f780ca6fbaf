"""Deformable attention against a loop over four neighbours, and its start values."""

import math

import torch

from clipself_d2.layers.deformable_attention import DeformableAttention

GRIDS = ((3, 5), (2, 2))


def naive(layer, query, places, tokens):
    """Every query, head, level and point by itself."""
    heads, points = layer.num_heads, layer.num_points
    count, num_queries, channels = query.shape
    values = layer.values(tokens).view(count, -1, heads, channels // heads)
    offsets = layer.offsets(query).view(count, num_queries, heads, len(GRIDS), points, 2)
    weights = layer.weights(query).view(count, num_queries, heads, -1).softmax(-1)
    weights = weights.view(count, num_queries, heads, len(GRIDS), points)
    out = torch.zeros(count, num_queries, heads, channels // heads)
    start = 0
    for level, (height, width) in enumerate(GRIDS):
        grid = values[:, start : start + height * width].unflatten(1, (height, width))
        start += height * width
        for n in range(count):
            for q in range(num_queries):
                for m in range(heads):
                    for p in range(points):
                        dx, dy = offsets[n, q, m, level, p]
                        x = places[q, 0] * width + dx - 0.5
                        y = places[q, 1] * height + dy - 0.5
                        for row in (math.floor(y), math.floor(y) + 1):
                            for column in (math.floor(x), math.floor(x) + 1):
                                if 0 <= row < height and 0 <= column < width:
                                    share = (1 - abs(y - row)) * (1 - abs(x - column))
                                    weight = weights[n, q, m, level, p] * share
                                    out[n, q, m] += weight * grid[n, row, column, m]
    return layer.output(out.flatten(2))


def test_equals_a_loop_over_neighbours() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(channels=8, num_levels=2, num_heads=2, num_points=3)
    torch.nn.init.normal_(layer.offsets.weight)
    torch.nn.init.normal_(layer.weights.weight)
    query, tokens, places = torch.randn(2, 4, 8), torch.randn(2, 19, 8), torch.rand(4, 2)
    with torch.no_grad():
        got = layer(query, places, tokens, GRIDS)
        torch.testing.assert_close(got, naive(layer, query, places, tokens), rtol=0, atol=1e-5)


def test_heads_begin_in_as_many_directions() -> None:
    layer = DeformableAttention(channels=8, num_levels=1, num_heads=4, num_points=2)
    start = layer.offsets(torch.randn(1, 1, 8)).view(4, 2, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(start[:, 0], expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(start[:, 1], 2 * expected, rtol=0, atol=1e-6)
