"""Keys of Detectron2's projects come with their heads, and not without."""

from pathlib import Path

import pytest
from detectron2.config import get_cfg

from clipself_d2.command_line.projects import add_project_keys
from clipself_d2.config import add_clipself_config

FOLDER = Path(__file__).parents[2] / "configs" / "plug_in"


@pytest.mark.parametrize(
    ("name", "heads"),
    [
        ("point_rend", ["PointRendMaskHead"]),
        ("deeplab", ["DeepLabV3PlusHead"]),
        ("mask_rcnn_fpn", []),
    ],
)
def test_the_keys_come_with_the_head(name, heads):
    cfg = get_cfg()
    add_clipself_config(cfg)
    file = str(FOLDER / f"{name}.yaml")
    assert add_project_keys(cfg, file) == heads
    assert ("POINT_HEAD" in cfg.MODEL) == (name == "point_rend")
    assert ("ASPP_DILATIONS" in cfg.MODEL.SEM_SEG_HEAD) == (name == "deeplab")
    cfg.merge_from_file(file)


def test_a_file_without_a_model_adds_nothing(tmp_path):
    file = tmp_path / "solver.yaml"
    file.write_text("SOLVER:\n  MAX_ITER: 3\n")
    assert add_project_keys(get_cfg(), str(file)) == []
