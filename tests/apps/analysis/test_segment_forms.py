"""Training-free segmentation: a row for each tower and form."""

import pytest
import torch

from clipself_d2.apps.analysis.segment_forms import form_table, score_forms
from clipself_d2.apps.analysis.tower_spec import TowerSpec
from clipself_d2.clip.vision_model import VisionModel

DATASET = "emoji_ov_sem_seg_val"
SPEC = TowerSpec.parse("one=ViT-Ti-8-emoji:emoji")


def test_every_form_has_its_own_figure(emoji_data) -> None:
    found = score_forms(DATASET, [SPEC], ["clipself", "declip_csa"], limit=2, device="cpu")
    one, other = (found["one", form]["mIoU"] for form in ("clipself", "declip_csa"))
    assert one != other
    assert form_table(found).count("\n") == 3


def test_the_form_of_a_proxy_reads_the_vision_model_that_is_named(emoji_data, tmp_path) -> None:
    other = VisionModel("tiny").model.state_dict()
    torch.save({name: value * 3.0 for name, value in other.items()}, tmp_path / "vfm.pth")
    found = [
        score_forms(DATASET, [SPEC], ["proxyclip"], limit=2, device="cpu", proxy=proxy)
        for proxy in ("tiny", f"tiny:{tmp_path / 'vfm.pth'}")
    ]
    assert found[0]["one", "proxyclip"]["pACC"] != found[1]["one", "proxyclip"]["pACC"]


def test_a_data_set_without_label_maps_is_refused(emoji_data) -> None:
    with pytest.raises(ValueError, match="emoji_panoptic_val has no"):
        score_forms("emoji_panoptic_val", [SPEC], ["clipself"])
