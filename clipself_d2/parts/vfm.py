"""MODEL.VFM as a vision foundation model; nothing else reads these keys."""

from detectron2.config import CfgNode

from clipself_d2.clip.vision_model import VisionModel


def build_vfm(cfg: CfgNode) -> VisionModel:
    """Build the frozen model of MODEL.VFM."""
    try:
        return VisionModel(cfg.MODEL.VFM.NAME, cfg.MODEL.VFM.WEIGHTS)
    except (ValueError, FileNotFoundError) as error:
        raise type(error)(f"{error}; check MODEL.VFM.NAME and WEIGHTS") from error
