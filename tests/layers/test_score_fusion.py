"""Score fusion against the reference and at its two ends."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clipself_d2.layers import fuse_scores
from clipself_d2.layers.score_fusion import ensemble_log_probs, fuse_passing

GOLDEN = Path(__file__).parent.parent / "golden" / "detector"
PANOPTIC = Path(__file__).parent.parent / "golden" / "panoptic"
BASE = torch.tensor([True, False, True])


def scores(seed: int, columns: int = 4) -> Tensor:
    return torch.rand(6, columns, generator=torch.Generator().manual_seed(seed))


def test_fused_scores_are_the_references() -> None:
    with np.load(GOLDEN / "score_fusion.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    fused = fuse_scores(
        arrays["det"],
        arrays["vlm"],
        arrays["base"][:-1],
        float(arrays["alpha"]),
        float(arrays["beta"]),
    )
    torch.testing.assert_close(fused, arrays["fused"], atol=1e-5, rtol=0)


def test_exponents_of_0_are_the_detector_and_of_1_are_clip() -> None:
    detector, clip = scores(0), scores(1)
    assert torch.equal(fuse_scores(detector, clip, BASE, 0.0, 0.0), detector)
    assert torch.equal(fuse_scores(detector, clip, BASE, 1.0, 1.0), clip)


def test_alpha_is_for_base_and_background_and_beta_for_novel() -> None:
    detector, clip = scores(0), scores(1)
    fused = fuse_scores(detector, clip, BASE, 0.0, 1.0)
    assert torch.equal(fused[:, [0, 2, 3]], detector[:, [0, 2, 3]])
    assert torch.equal(fused[:, 1], clip[:, 1])


def test_background_column_may_be_missing() -> None:
    detector, clip = scores(0), scores(1)
    without = fuse_scores(detector[:, :3], clip[:, :3], BASE, 0.2, 0.7)
    assert torch.equal(without, fuse_scores(detector, clip, BASE, 0.2, 0.7)[:, :3])


def test_equal_scores_stay_and_order_within_a_class_is_kept() -> None:
    detector = scores(0)
    torch.testing.assert_close(fuse_scores(detector, detector, BASE, 0.3, 0.8), detector)
    clip = torch.full_like(detector, 0.5)
    fused = fuse_scores(detector, clip, BASE, 0.3, 0.8)
    assert torch.equal(fused.argsort(0), detector.argsort(0))


def test_zero_probabilities_give_zero_and_no_nan() -> None:
    zeros = torch.zeros(2, 4)
    assert torch.equal(fuse_scores(zeros, scores(1)[:2], BASE, 0.1, 0.8), zeros)
    assert fuse_scores(torch.zeros(0, 4), torch.zeros(0, 4), BASE, 0.1, 0.8).shape == (0, 4)


def test_a_mask_of_other_classes_is_refused() -> None:
    with pytest.raises(ValueError, match="3 entries for 5 scores"):
        fuse_scores(scores(0, 5), scores(0, 5), BASE, 0.1, 0.8)


def test_ensemble_of_masks_is_the_references() -> None:
    with np.load(PANOPTIC / "fcclip_fusion.npz") as arrays:
        case = {name: torch.from_numpy(arrays[name]) for name in arrays}
    got = ensemble_log_probs(
        case["in_vocab_logits"],
        case["out_vocab_logits"][..., :-1],
        case["overlap"],
        alpha=float(case["alpha"]),
        beta=float(case["beta"]),
    )
    torch.testing.assert_close(got, case["final_log_prob"], rtol=0, atol=1e-5)


def test_ensemble_keeps_the_detectors_score_where_clip_saw_nothing() -> None:
    detector = torch.randn(3, 5)
    clip = torch.randn(3, 4) * 500  # probabilities that underflow
    base = torch.tensor([True, False, True, False])
    seen = torch.tensor([True, False, True])
    got = ensemble_log_probs(detector, clip, base, alpha=0.4, beta=0.8, seen_Q=seen)
    assert got.isfinite().all()
    torch.testing.assert_close(got[1], detector[1].log_softmax(-1), rtol=0, atol=1e-5)
    assert not torch.allclose(got[0], detector[0].log_softmax(-1), atol=1e-3)
    torch.testing.assert_close(got.exp().sum(-1), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize("exponents", [(0.1, 0.8), (0.0, 1.0), (1.0, 0.0), (0.4, 0.4)])
@pytest.mark.parametrize("threshold", [-1.0, 0.0, 1e-6, 0.01, 0.3, 1.0])
def test_passing_scores_are_all_that_pass(exponents: tuple[float, float], threshold: float) -> None:
    rng = torch.Generator().manual_seed(0)
    detector, clip = (
        (width * torch.randn(40, 301, generator=rng)).softmax(1) for width in (4.0, 30.0)
    )
    if min(exponents) > 0:
        detector[3], clip[5] = float("nan"), float("nan")
    clip[7, 1], detector[7, 2] = 0.0, 0.0
    base = torch.arange(300) % 3 != 0
    full = fuse_scores(detector, clip, base, *exponents)[:, :-1]
    # The very threshold does not pass: one of the scores is taken for it.
    for least in (threshold, float(full[8].median())):
        rows, classes, fused = fuse_passing(detector, clip, base, *exponents, least)
        expected = (full > least).nonzero()
        assert torch.equal(torch.stack([rows, classes], 1), expected)
        torch.testing.assert_close(fused, full[expected[:, 0], expected[:, 1]], rtol=3e-7, atol=0)
