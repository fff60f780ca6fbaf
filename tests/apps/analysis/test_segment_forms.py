"""Training-free segmentation: a row for each tower and form."""

import pytest

from clipself_d2.apps.analysis.segment_forms import form_table, score_forms
from clipself_d2.apps.analysis.tower_spec import TowerSpec

DATASET = "emoji_ov_sem_seg_val"
SPEC = TowerSpec.parse("one=ViT-Ti-8-emoji:emoji")


def test_every_form_has_its_own_figure(emoji_data) -> None:
    found = score_forms(DATASET, [SPEC], ["clipself", "declip_csa"], limit=2, device="cpu")
    one, other = (found["one", form]["mIoU"] for form in ("clipself", "declip_csa"))
    assert one != other
    assert form_table(found).count("\n") == 3


def test_a_data_set_without_label_maps_is_refused(emoji_data) -> None:
    with pytest.raises(ValueError, match="emoji_panoptic_val has no"):
        score_forms("emoji_panoptic_val", [SPEC], ["clipself"])
