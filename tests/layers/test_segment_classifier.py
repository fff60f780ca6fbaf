"""Classes of several words: the reference's numbers, then what words may be."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from clipself_d2.layers.region_pool import mask_embeddings
from clipself_d2.layers.segment_classifier import SegmentTextClassifier

GOLDEN = Path(__file__).parent.parent / "golden" / "panoptic" / "fcclip_fusion.npz"


def test_pooling_and_best_words_are_the_references() -> None:
    with np.load(GOLDEN) as arrays:
        case = {name: torch.from_numpy(arrays[name]) for name in arrays}
    grid = case["feat"].shape[-2:]
    small = F.interpolate(case["mask_logits"], grid, mode="bilinear", align_corners=False)
    pooled = mask_embeddings(case["feat"], list((small > 0).float()), normalize=False)
    torch.testing.assert_close(pooled.unflatten(0, (2, 6)), case["pooled"], rtol=0, atol=1e-5)
    sizes, text = case["num_templates"], case["text"]
    words, void = text[:-1], text[-1]
    classifier = SegmentTextClassifier(
        embeddings_KD=words[sizes.cumsum(0) - sizes],
        base_mask_K=torch.ones(len(sizes), dtype=torch.bool),
        background=void,
        words_WD=words,
        word_class_W=torch.arange(len(sizes)).repeat_interleave(sizes),
        scale=min(float(case["logit_scale"].exp()), 100.0),
    )
    got = classifier(case["pooled"])
    torch.testing.assert_close(got, case["out_vocab_logits"], rtol=0, atol=1e-5)


def classifier(**changes: object) -> SegmentTextClassifier:
    rows = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    tables = {
        "embeddings_KD": rows,
        "base_mask_K": torch.ones(3, dtype=torch.bool),
        "background": rows[0],
    }
    return SegmentTextClassifier(**{**tables, **changes})


def test_without_synonyms_it_scores_the_classes_own_embeddings() -> None:
    model, region = classifier(scale=10.0), torch.randn(4, 8)
    wanted = 10.0 * F.normalize(region, dim=1) @ model.embeddings_KD.T
    torch.testing.assert_close(model(region)[:, :3], wanted)
    assert model.thing_mask.all()


def test_void_learns_and_words_are_no_part_of_a_checkpoint() -> None:
    assert list(classifier().state_dict()) == ["learned_background"]


def test_a_class_without_a_word_is_refused() -> None:
    with pytest.raises(ValueError, match="every one of 3 classes"):
        classifier(words_WD=torch.randn(2, 8), word_class_W=torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="shape"):
        classifier(words_WD=torch.randn(3, 7), word_class_W=torch.arange(3))
