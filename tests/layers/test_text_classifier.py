"""Scaled cosines: against the reference's scores, under a change of classes, in mixed precision."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clipself_d2.layers import SigmoidTextClassifier, TextClassifier, text_classifier

GOLDEN = Path(__file__).parent.parent / "golden" / "detector"
K, D = 5, 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(**options: object) -> TextClassifier:
    arguments = {
        "embeddings_KD": random(K, D),
        "base_mask_K": torch.tensor([True, True, False, True, False]),
        "background": random(D, seed=1),
        "background_mode": "text",
        "scale": 50.0,
        "learn_scale": True,
    }
    return TextClassifier(**{**arguments, **options})


@pytest.mark.parametrize(
    ("region", "scale", "expected"), [("x_cls", "t_det", "det"), ("x_vlm", "t_vlm", "vlm")]
)
def test_probabilities_are_the_references(region: str, scale: str, expected: str) -> None:
    with np.load(GOLDEN / "score_fusion.npz") as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    classifier = TextClassifier(
        embeddings_KD=arrays["text_embed"][:-1],
        base_mask_K=arrays["base"][:-1],
        background=arrays["text_embed"][-1],
        background_mode="text",
        scale=float(arrays[scale]),
        learn_scale=False,
    )
    scores = classifier(arrays[region]).softmax(1)
    torch.testing.assert_close(scores, arrays[expected], atol=1e-5, rtol=0)


def test_logits_are_scale_times_cosine_with_background_last() -> None:
    region_RD = 7 * random(3, D, seed=2)
    logits = make()(region_RD)
    for row in range(3):
        for column in range(K):
            cosine = F.cosine_similarity(region_RD[row], random(K, D)[column], dim=0)
            torch.testing.assert_close(logits[row, column], 50 * cosine)
        cosine = F.cosine_similarity(region_RD[row], random(D, seed=1), dim=0)
        torch.testing.assert_close(logits[row, K], 50 * cosine)


@pytest.mark.parametrize("mode", ["text", "zero", "learned"])
def test_many_classes_are_multiplied_in_parts_with_the_same_cosines(monkeypatch, mode) -> None:
    classifier, regions = make(background_mode=mode), random(2, 3, D)
    expected = classifier(regions).detach()
    monkeypatch.setattr(text_classifier, "_COLUMNS", 2)
    with torch.no_grad():
        torch.testing.assert_close(classifier(regions), expected)
        assert classifier(regions[:0]).shape == (0, 3, K + 1)


def test_norm_of_regions_and_embeddings_does_not_matter() -> None:
    region_RD = random(4, D, seed=2)
    scaled = make(embeddings_KD=3 * random(K, D), background=0.1 * random(D, seed=1))
    torch.testing.assert_close(scaled(9 * region_RD), make()(region_RD))


def test_no_region_gives_no_row_and_a_zero_region_no_nan() -> None:
    assert make()(torch.zeros(0, D)).shape == (0, K + 1)
    assert torch.equal(make()(torch.zeros(1, D)), torch.zeros(1, K + 1))


@pytest.mark.parametrize(
    ("options", "keys"),
    [
        ({}, {"scale"}),
        ({"learn_scale": False}, set()),
        ({"background_mode": "learned"}, {"scale", "learned_background"}),
        ({"background_mode": "zero", "background": None}, {"scale"}),
    ],
)
def test_text_embeddings_stay_out_of_the_checkpoint(options, keys: set[str]) -> None:
    assert set(make(**options).state_dict()) == keys


def test_checkpoint_fits_any_number_of_classes() -> None:
    trained = make()
    with torch.no_grad():
        trained.scale.fill_(33.0)
    other = make(embeddings_KD=random(2, D, seed=5), base_mask_K=torch.tensor([True, True]))
    other.load_state_dict(trained.state_dict())
    assert other.scale.item() == 33.0


def test_scale_learns_where_asked() -> None:
    for learn in (True, False):
        classifier = make(learn_scale=learn)
        region_RD = random(3, D, seed=2).requires_grad_()
        classifier(region_RD)[:, 0].sum().backward()
        assert region_RD.grad.abs().sum() > 0
        if learn:
            expected = classifier.cosine(region_RD)[:, 0].sum()
            torch.testing.assert_close(classifier.scale.grad, expected)
        else:
            assert list(classifier.parameters()) == []


def test_background_modes() -> None:
    region_RD = random(3, D, seed=2)
    zero = make(background_mode="zero", background=None)(region_RD)
    assert torch.equal(zero[:, -1], torch.zeros(3))
    learned = make(background_mode="learned")
    text = make()(region_RD)
    torch.testing.assert_close(learned(region_RD), text)
    torch.testing.assert_close(zero[:, :-1], text[:, :-1])
    learned(region_RD)[:, -1].sum().backward()
    assert learned.learned_background.grad.abs().sum() > 0


def test_set_embeddings_changes_classes_and_their_number() -> None:
    classifier = make()
    region_RD = random(3, D, seed=2)
    before = classifier(region_RD)
    former = classifier.get_embeddings()
    classifier.set_embeddings(random(2, D, seed=3), torch.tensor([False, True]), random(D, seed=4))
    assert classifier.num_classes == 2
    assert classifier.base_mask.tolist() == [False, True]
    torch.testing.assert_close(
        classifier(region_RD)[:, 1],
        50 * F.cosine_similarity(region_RD, random(2, D, seed=3)[1:], dim=1),
    )
    classifier.set_embeddings(*former)
    assert torch.equal(classifier(region_RD), before)


def test_embeddings_given_are_not_modified_nor_shared() -> None:
    given = F.normalize(random(K, D), dim=1)
    copy = given.clone()
    classifier = make(embeddings_KD=given)
    assert torch.equal(given, copy)
    given.zero_()
    assert torch.equal(classifier.embeddings_KD, copy)


def test_checkpoints_that_say_temperature_load_strictly() -> None:
    classifier = make()
    classifier.load_state_dict({"temperature": torch.tensor(33.0)}, strict=True)
    assert classifier.scale.item() == 33.0


def test_mixed_precision_leaves_logits_in_float32() -> None:
    region_RD = random(16, D, seed=2)
    expected = make()(region_RD)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = make()(region_RD)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    assert make()(region_RD.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"background_mode": "none"}, "background_mode is 'none'"),
        ({"background": None}, "no background"),
        ({"background": None, "background_mode": "learned"}, "starts from"),
        ({"base_mask_K": torch.ones(K + 1)}, r"base mask has shape \(6,\) for 5 classes"),
        ({"embeddings_KD": torch.ones(0, D)}, r"K >= 1"),
        ({"embeddings_KD": torch.ones(D)}, r"expected \(K, 8\)"),
        ({"embeddings_KD": torch.full((K, D), torch.nan)}, "not finite"),
    ],
)
def test_wrong_arguments_are_refused(options, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        make(**options)


def test_refused_embeddings_leave_the_classes() -> None:
    classifier = make()
    region_RD = random(3, D, seed=2)
    before = classifier(region_RD)
    with pytest.raises(ValueError, match="base mask"):
        classifier.set_embeddings(random(2, D), torch.ones(3), random(D))
    assert torch.equal(classifier(region_RD), before)


def make_sigmoid(**options: object) -> SigmoidTextClassifier:
    arguments = {
        "embeddings_KD": random(K, D),
        "base_mask_K": torch.tensor([True, True, False, True, False]),
        "scale": 20.0,
    }
    return SigmoidTextClassifier(**{**arguments, **options})


def test_independent_classes_are_shifted_cosines_without_background() -> None:
    region_RD = random(3, 4, D, seed=2)
    logits = make_sigmoid(prior=0.2)(region_RD)
    assert logits.shape == (3, 4, K)
    cosine = F.cosine_similarity(region_RD[:, :, None], random(K, D), dim=-1)
    torch.testing.assert_close(logits, 20 * cosine + np.log(0.2 / 0.8))


def test_a_cosine_of_zero_has_the_prior_at_the_start() -> None:
    classifier = make_sigmoid(prior=0.03)
    logits = classifier(torch.zeros(1, D))
    torch.testing.assert_close(logits.sigmoid(), torch.full((1, K), 0.03))


def test_independent_classes_come_back_exactly_after_a_change() -> None:
    classifier, region_RD = make_sigmoid(), random(6, D, seed=2)
    before, state = classifier(region_RD), classifier.get_embeddings()
    classifier.set_embeddings(random(2, D, seed=5), torch.tensor([True, True]), random(D))
    assert classifier(region_RD).shape == (6, 2)
    classifier.set_embeddings(*state)
    assert torch.equal(classifier(region_RD), before)


def test_only_scale_and_shift_are_in_the_checkpoint() -> None:
    assert set(make_sigmoid().state_dict()) == {"scale", "shift"}
