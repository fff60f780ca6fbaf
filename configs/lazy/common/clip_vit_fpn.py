"""F-ViT's backbone: a frozen CLIP ViT-B/16 with a pyramid of the levels p2 to p6.

Another model: set ``backbone.backbone.tower.name`` and ``.weights``, and ``tap_blocks`` to four of
its blocks ending with the last; EVA02-L-14-336 has [6, 10, 14, 23].
"""

from detectron2.config import LazyCall as L

from clipself_d2.backbones import ClipViT, ClipViTPyramid
from clipself_d2.clip.model import load_tower

backbone = L(ClipViTPyramid)(
    backbone=L(ClipViT)(
        tower=L(load_tower)(name="ViT-B-16-quickgelu", weights="openai", precision="fp32"),
        tap_blocks=[3, 5, 7, 11],
        dense_form="clipself",
        trainable_blocks=0,
    ),
    strides=[4, 8, 16, 32],
    out_channels=256,
    norm="SyncBN",
)
