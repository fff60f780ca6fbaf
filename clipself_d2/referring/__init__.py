"""Referring segmentation; importing the package registers the meta-architecture."""

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_d2.referring.cris import CRIS
from clipself_d2.referring.decoder import CrisDecoder
from clipself_d2.referring.encoder import ResNetLevels, ViTLevels, ViTResampling
from clipself_d2.referring.losses import text_to_pixel_contrastive_loss
from clipself_d2.referring.neck import CrisNeck
from clipself_d2.referring.projector import CrisProjector

META_ARCH_REGISTRY.register(CRIS)
