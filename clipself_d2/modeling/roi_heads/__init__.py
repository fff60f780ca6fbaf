"""ROI heads in Detectron2's registry."""

from clipself_d2.modeling.roi_heads.cascade import OpenVocabCascadeROIHeads
from clipself_d2.modeling.roi_heads.embedding_predictor import EmbeddingFastRCNNOutputLayers
from clipself_d2.modeling.roi_heads.output_layers import OpenVocabFastRCNNOutputLayers
from clipself_d2.modeling.roi_heads.res5_heads import CLIPRes5ROIHeads
from clipself_d2.modeling.roi_heads.roi_heads import OpenVocabROIHeads

__all__ = [
    "CLIPRes5ROIHeads",
    "EmbeddingFastRCNNOutputLayers",
    "OpenVocabCascadeROIHeads",
    "OpenVocabFastRCNNOutputLayers",
    "OpenVocabROIHeads",
]
