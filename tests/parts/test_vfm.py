import pytest

from clipself_d2.engine.cli import load_config
from clipself_d2.parts.vfm import build_vfm

RECIPE = "configs/emoji/declip.yaml"


def test_the_keys_choose_the_model() -> None:
    assert build_vfm(load_config(RECIPE, [])).patch_size == 8


def test_errors_name_the_keys() -> None:
    cfg = load_config(RECIPE, ["MODEL.VFM.NAME", "dinov9"])
    with pytest.raises(ValueError, match=r"check MODEL\.VFM\.NAME"):
        build_vfm(cfg)
    cfg = load_config(RECIPE, ["MODEL.VFM.WEIGHTS", "no.pth"])
    with pytest.raises(FileNotFoundError, match=r"check MODEL\.VFM\.NAME and WEIGHTS"):
        build_vfm(cfg)
