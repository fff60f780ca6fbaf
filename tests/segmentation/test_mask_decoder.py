"""The masked-attention decoder: where queries look, and what they say."""

import torch

from clipself_d2.segmentation.mask_decoder import MaskedAttentionDecoder


def make(num_layers: int = 3) -> MaskedAttentionDecoder:
    torch.manual_seed(0)
    return MaskedAttentionDecoder(
        channels=16, embed_dim=6, num_queries=5, num_layers=num_layers, num_heads=2, hidden=32
    ).eval()


def inputs() -> tuple[torch.Tensor, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(2, 16, *grid, generator=generator) for grid in ((2, 3), (4, 6), (8, 12))]
    return torch.randn(2, 16, 16, 24, generator=generator), levels


def test_one_prediction_before_the_first_layer_and_one_behind_every_layer() -> None:
    predictions = make()(*inputs())
    assert len(predictions) == 4
    assert {tuple(each.embedding.shape) for each in predictions} == {(2, 5, 6)}
    assert {tuple(each.masks.shape) for each in predictions} == {(2, 5, 16, 24)}


def test_queries_do_not_look_outside_of_their_masks() -> None:
    decoder = make(num_layers=1)
    features, levels = inputs()
    masks = decoder(features, levels)[0].masks
    blocked = decoder._blocked(masks, (2, 3)).view(2, 2, 5, 6)[:, 0]
    hidden = blocked[0].all(0)  # cells that no query of the first picture may see
    features = features.clone()
    if not hidden.any():
        features[0, :, :, :8] = 0
        masks = decoder(features, levels)[0].masks
        blocked = decoder._blocked(masks, (2, 3)).view(2, 2, 5, 6)[:, 0]
    query, cell = next((q, c) for q in range(5) for c in range(6) if blocked[0, q, c])
    before = decoder(features, levels)[1].masks
    changed = levels[0].clone()
    changed[0, :, cell // 3, cell % 3] += 5.0
    # The layer alone, without the self attention that lets queries tell one another.
    layer = decoder.layers[0]
    for norm in (layer.own.out_proj.weight, layer.own.out_proj.bias):
        torch.nn.init.zeros_(norm)
    before = decoder(features, levels)[1].masks
    after = decoder(features, [changed, *levels[1:]])[1].masks
    assert torch.equal(before[0, query], after[0, query])
    assert not torch.equal(before[0], after[0]) or bool(blocked[0, :, cell].all())


def test_a_query_whose_mask_is_empty_looks_everywhere() -> None:
    decoder = make()
    masks = torch.full((1, 5, 8, 8), -3.0)
    masks[0, 0, :4, :4] = 3.0
    blocked = decoder._blocked(masks, (2, 2)).view(1, 2, 5, 4)
    assert blocked[0, 0, 0].tolist() == [False, True, True, True]
    assert not blocked[:, :, 1:].any()
