"""Open-vocabulary detectors; importing the package registers heads and meta-architectures."""

from detectron2.modeling import META_ARCH_REGISTRY, ROI_HEADS_REGISTRY
from detectron2.modeling.anchor_generator import ANCHOR_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN_HEAD_REGISTRY

from clipself_d2.detection.anchors import HeldAnchorGenerator
from clipself_d2.detection.cascade import OpenVocabCascadeROIHeads
from clipself_d2.detection.dense_text import (
    OpenVocabFCOS,
    OpenVocabFCOSHead,
    OpenVocabRetinaNet,
    OpenVocabRetinaNetHead,
)
from clipself_d2.detection.embedding_predictor import EmbeddingFastRCNNOutputLayers
from clipself_d2.detection.offline_proposals import OfflineProposalRCNN
from clipself_d2.detection.output_layers import OpenVocabFastRCNNOutputLayers
from clipself_d2.detection.res5_heads import CLIPRes5ROIHeads
from clipself_d2.detection.roi_heads import OpenVocabROIHeads
from clipself_d2.detection.rpn import BlendedRPN, JointRPN, NormRPNHead

ANCHOR_GENERATOR_REGISTRY.register(HeldAnchorGenerator)
META_ARCH_REGISTRY.register(OfflineProposalRCNN)
META_ARCH_REGISTRY.register(OpenVocabFCOS)
META_ARCH_REGISTRY.register(OpenVocabRetinaNet)
ROI_HEADS_REGISTRY.register(CLIPRes5ROIHeads)
ROI_HEADS_REGISTRY.register(OpenVocabCascadeROIHeads)
ROI_HEADS_REGISTRY.register(OpenVocabROIHeads)
PROPOSAL_GENERATOR_REGISTRY.register(BlendedRPN)
PROPOSAL_GENERATOR_REGISTRY.register(JointRPN)
RPN_HEAD_REGISTRY.register(NormRPNHead)
