import pytest
import torch

from clipself_d2.referring import text_to_pixel_contrastive_loss
from clipself_d2.referring.projector import CrisProjector, sentence_convolution

TOLERANCE = {"rtol": 0.0, "atol": 1e-5}


@torch.no_grad()
def test_logits_are_those_of_the_released_code(projector, golden):
    expected = golden("projector_loss")
    torch.testing.assert_close(projector.vis(expected["x"]), expected["vis_out"], **TOLERANCE)
    torch.testing.assert_close(projector.txt(expected["state"]), expected["txt_out"], **TOLERANCE)
    got = projector(expected["x"], expected["state"])
    torch.testing.assert_close(got, expected["logits"], **TOLERANCE)


@torch.no_grad()
def test_kernel_of_one_is_the_papers_dot_product(projector_k1, golden):
    expected = golden("projector_k1")
    got = projector_k1(expected["x"], expected["state"])
    torch.testing.assert_close(got, expected["logits"], **TOLERANCE)
    pixels, text = projector_k1.vis(expected["x"]), projector_k1.txt(expected["state"])
    dot = (pixels * text[:, :-1, None, None]).sum(1, keepdim=True) + text[:, -1, None, None, None]
    torch.testing.assert_close(got, dot, **TOLERANCE)


@torch.no_grad()
def test_normalised_sentences_have_no_scale():
    torch.manual_seed(0)
    plain = CrisProjector(dim=8, state_dim=6).eval()
    unit = CrisProjector(dim=8, state_dim=6, normalize_state=True).eval()
    unit.load_state_dict(plain.state_dict())
    features, state = torch.randn(2, 8, 3, 4), torch.randn(2, 6)
    torch.testing.assert_close(unit(features, 9 * state), unit(features, state), **TOLERANCE)
    by_hand = plain(features, state / state.norm(dim=1, keepdim=True))
    torch.testing.assert_close(unit(features, state), by_hand, **TOLERANCE)


@pytest.mark.parametrize("side", [1, 3, 5])
def test_a_kernel_is_a_convolution_of_each_pair_by_itself(side):
    torch.manual_seed(0)
    pixels, kernels = torch.randn(3, 4, 5, 6), torch.randn(3, 4 * side**2 + 1)
    got = sentence_convolution(pixels, kernels, side)
    for image, kernel, logits in zip(pixels, kernels, got, strict=True):
        weight = kernel[:-1].reshape(1, 4, side, side)
        alone = torch.nn.functional.conv2d(image[None], weight, kernel[-1:], padding=side // 2)
        torch.testing.assert_close(logits[None], alone, **TOLERANCE)


def test_training_step_has_the_gradients_of_the_released_code(neck, decoder, projector, golden):
    expected, levels = golden("head_train_step"), golden("neck")
    texts, target = golden("decoder"), golden("projector_loss")
    modules = {"neck": neck, "decoder": decoder, "proj": projector}
    for module in modules.values():
        module.double().train()
    # Batch norms over two images magnify rounding: the reference's own single precision is 6e-5
    # off, and so is ours on some processors. In double precision only the reference's is left.
    levels, texts = ({k: v.double() for k, v in part.items()} for part in (levels, texts))
    fused = neck([levels["v3"], levels["v4"], levels["v5"]], levels["state"])
    decoded = decoder(fused, texts["txt"], texts["pad_mask"].bool())
    logits = projector(decoded, levels["state"])
    torch.testing.assert_close(logits, expected["logits"].double(), rtol=0.0, atol=1e-4)
    loss = text_to_pixel_contrastive_loss(logits, target["mask_hard_96x128"].double())
    torch.testing.assert_close(loss, expected["loss"].to(loss), **TOLERANCE)
    loss.backward()
    norms = {
        f"grad_norm/{part}.{name}": parameter.grad.norm()
        for part, module in modules.items()
        for name, parameter in module.named_parameters()
    }
    assert set(norms) == {key for key in expected if key.startswith("grad_norm/")}
    for key, norm in norms.items():
        torch.testing.assert_close(norm.float(), expected[key], rtol=1e-4, atol=1e-5, msg=key)


@pytest.mark.parametrize("kernel_size", [0, 1, 3])
def test_a_prior_is_the_probability_at_the_start_where_nothing_is_seen(kernel_size):
    projector = CrisProjector(dim=8, state_dim=6, kernel_size=kernel_size, prior=0.03).eval()
    with torch.no_grad():
        projector.vis[-1].weight.zero_()
        projector.vis[-1].bias.zero_()
        probability = projector(torch.randn(1, 8, 2, 2), torch.zeros(1, 6)).sigmoid()
    torch.testing.assert_close(probability, torch.full_like(probability, 0.03))


def test_kernel_of_zero_ignores_the_sentence():
    torch.manual_seed(0)
    module = CrisProjector(dim=8, state_dim=4, kernel_size=0).eval()
    features, state = torch.randn(2, 8, 2, 3), torch.randn(2, 4)
    logits = module(features, state)
    assert logits.shape == (2, 1, 8, 12)
    assert torch.equal(logits, module(features, -state))


@pytest.mark.parametrize(("dim", "kernel"), [(8, 2), (8, -1), (7, 3)])
def test_even_kernels_and_odd_widths_name_their_keys(dim, kernel):
    with pytest.raises(ValueError, match=r"MODEL\.CRIS\.KERNEL_SIZE is odd or 0"):
        CrisProjector(dim=dim, state_dim=4, kernel_size=kernel)
