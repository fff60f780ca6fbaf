"""Upsampling beside a guide."""

import torch

from clipself_d2.segmentation.guided_decoder import GuidedUpsampling


def test_each_class_is_decoded_by_itself_beside_its_image_guide():
    torch.manual_seed(0)
    module = GuidedUpsampling(in_dim=12, out_dim=16, guide_dim=4)
    cost, guide = torch.randn(2, 3, 12, 5, 7), torch.randn(2, 4, 10, 14)
    whole = module(cost, guide)
    assert whole.shape == (2, 3, 16, 10, 14)
    torch.testing.assert_close(module(cost[1:, 2:], guide[1:])[0, 0], whole[1, 2])
    assert not torch.allclose(module(cost[1:, 2:], guide[:1])[0, 0], whole[1, 2])
