"""Parts of referring segmentation: encoder levels, neck, decoder, projector, loss."""

from clipself_d2.modeling.segmentation.cris_decoder import CrisDecoder
from clipself_d2.modeling.segmentation.cris_encoder import ResNetLevels, ViTLevels, ViTResampling
from clipself_d2.modeling.segmentation.cris_neck import CrisNeck
from clipself_d2.modeling.segmentation.cris_projector import CrisProjector
from clipself_d2.modeling.segmentation.losses import text_to_pixel_contrastive_loss

__all__ = [
    "CrisDecoder",
    "CrisNeck",
    "CrisProjector",
    "ResNetLevels",
    "ViTLevels",
    "ViTResampling",
    "text_to_pixel_contrastive_loss",
]
