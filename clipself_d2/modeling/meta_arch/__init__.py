"""Meta-architectures for MODEL.META_ARCHITECTURE; importing the package registers them."""

from detectron2.modeling import META_ARCH_REGISTRY

from clipself_d2.modeling.meta_arch.offline_proposals import OfflineProposalRCNN
from clipself_d2.modeling.meta_arch.open_vocab_fcos import OpenVocabFCOS, OpenVocabFCOSHead
from clipself_d2.modeling.meta_arch.open_vocab_retinanet import (
    OpenVocabRetinaNet,
    OpenVocabRetinaNetHead,
)
from clipself_d2.modeling.meta_arch.referring import CRIS

META_ARCH_REGISTRY.register(CRIS)
META_ARCH_REGISTRY.register(OfflineProposalRCNN)
META_ARCH_REGISTRY.register(OpenVocabFCOS)
META_ARCH_REGISTRY.register(OpenVocabRetinaNet)

__all__ = [
    "CRIS",
    "OfflineProposalRCNN",
    "OpenVocabFCOS",
    "OpenVocabFCOSHead",
    "OpenVocabRetinaNet",
    "OpenVocabRetinaNetHead",
]
