"""FCOS whose classes are text, the lazy way: tools/demo.py gives it any words."""

from detectron2.config import LazyCall as L

from clipself_d2.detection import OpenVocabFCOS, OpenVocabFCOSHead
from clipself_d2.parts.text_embeddings import build_sigmoid_classifier, dataset_embeddings

from .fcos import (  # noqa: F401  (parts of the config)
    dataloader,
    lr_multiplier,
    model,
    optimizer,
    train,
)

model._target_ = OpenVocabFCOS
del model.num_classes
model.head._target_ = OpenVocabFCOSHead
del model.head.num_classes
del model.head.prior_prob
model.head.classifier = L(build_sigmoid_classifier)(
    embeddings=L(dataset_embeddings)(
        name="${dataloader.train.dataset.names}",
        clip="ViT-Ti-8-emoji",
        weights="emoji",
        templates="emoji",
    ),
)
train.output_dir = "output/plug_in/fcos_words"
