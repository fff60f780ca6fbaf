"""Keys of the projects that come with Detectron2, for configs that use their heads."""

from detectron2.config import CfgNode
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config

from clipself_d2.parts.config_files import read_config_file

# Heads by the function that adds their keys; importing the projects has registered them.
_HEADS = {
    add_pointrend_config: {
        "PointRendMaskHead",
        "ImplicitPointRendMaskHead",
        "PointRendSemSegHead",
        "PointRendROIHeads",
    },
    add_deeplab_config: {"DeepLabV3Head", "DeepLabV3PlusHead"},
}
_PARTS = ("ROI_HEADS", "ROI_MASK_HEAD", "SEM_SEG_HEAD")


def add_project_keys(cfg: CfgNode, config_file: str) -> list[str]:
    """Add, in place, the keys of PointRend and DeepLab where a file names one of their heads.

    Returns the names of the heads found.
    """
    model = read_config_file(config_file).get("MODEL") or {}
    named = {str((model.get(part) or {}).get("NAME")) for part in _PARTS}
    found: list[str] = []
    for add_keys, heads in _HEADS.items():
        if named & heads:
            add_keys(cfg)
            found += sorted(named & heads)
    return found
