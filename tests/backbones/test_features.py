"""Shapes by name, which say what there is where one is missing."""

import pytest
from detectron2.layers import ShapeSpec

from clipself_d2.backbones.features import Features


def test_it_is_a_dict_but_for_a_missing_name() -> None:
    given = {"p2": ShapeSpec(stride=4), "clip": ShapeSpec(stride=8)}
    features = Features(given)
    assert features == given
    assert features.get("p7") is None
    assert "p7" not in features
    with pytest.raises(ValueError, match=r"feature 'p7', but the backbone gives p2, clip;"):
        features["p7"]
