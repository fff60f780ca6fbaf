"""Open-vocabulary panoptic segmentation with EVA02-CLIP-B/16 on COCO.

As configs/panoptic/ov_panoptic_untouched_eva02_b16.yaml. A distilled tower:
``model.backbone.backbone.tower.weights=output/distill/.../model_final.pth``. Another CLIP:
``shared.clip``, ``shared.weights``, the tower's ``tap_blocks``, and ``model.decoder.embed_dim``.
"""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import build_detection_test_loader, get_detection_dataset_dicts
from detectron2.layers import ShapeSpec
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import MultiStepParamScheduler
from omegaconf import OmegaConf

from clipself_d2.backbones import ClipViT, ClipViTStages
from clipself_d2.clip.model import load_tower
from clipself_d2.data.build import build_detection_train_loader
from clipself_d2.data.detection_mapper import PictureMapper, lsj_augmentations
from clipself_d2.data.panoptic_mapper import PanopticMapper
from clipself_d2.engine.solver import ClippedAdamW
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.text_embeddings import build_segment_classifier, dataset_embeddings
from clipself_d2.segmentation import OpenVocabPanoptic
from clipself_d2.segmentation.mask_decoder import MaskedAttentionDecoder
from clipself_d2.segmentation.mask_losses import MaskLoss
from clipself_d2.segmentation.panoptic import ClipScores
from clipself_d2.segmentation.pixel_decoder import PixelDecoder

shared = {
    "clip": "EVA02-B-16",
    "weights": "merged2b_s8b_b131k",
    "templates": "vild",
    "cache_dir": "output/text_embeddings",
    "classes_of": "coco_2017_train_ov_panoptic",
}
strides = {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
channels = {"res2": 128, "res3": 256, "res4": 512, "res5": 1024}

model = L(OpenVocabPanoptic)(
    backbone=L(ClipViTStages)(
        backbone=L(ClipViT)(
            tower=L(load_tower)(
                name="${shared.clip}", weights="${shared.weights}", precision="auto"
            ),
            tap_blocks=[3, 5, 7, 11],
        ),
        strides=strides,
        channels=channels,
        norm="GN",
        pad_to_stride=True,
    ),
    pixel_decoder=L(PixelDecoder)(
        input_shape={
            name: L(ShapeSpec)(channels=channels[name], stride=strides[name]) for name in strides
        },
        in_features=list(strides),
        channels=256,
        norm="GN",
        attention_layers=6,
    ),
    decoder=L(MaskedAttentionDecoder)(
        channels=256, embed_dim=512, num_queries=250, num_layers=9, hidden=2048
    ),
    classifier=L(build_segment_classifier)(
        embeddings=L(dataset_embeddings)(
            name="${shared.classes_of}",
            clip="${shared.clip}",
            weights="${shared.weights}",
            templates="${shared.templates}",
            cache_dir="${shared.cache_dir}",
        ),
        scale=100.0,
    ),
    clip_scores=L(ClipScores)(scale=100.0, alpha=0.4, beta=0.8),
    loss=L(MaskLoss)(void=0.1, num_points=12544),
    # CLIP's mean and std x 255, RGB.
    pixel_mean=[122.7709, 116.7460, 104.0937],
    pixel_std=[68.5005, 66.6322, 70.3232],
)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="${shared.classes_of}", filter_empty=False),
    mapper=L(PanopticMapper)(
        augmentations=L(lsj_augmentations)(size=1024, scale_range=(0.1, 2.0)),
    ),
    total_batch_size=16,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_2017_val_ov_panoptic", filter_empty=False),
    mapper=L(PictureMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=800, max_size=1333)],
        image_format="RGB",
    ),
    num_workers=4,
)
dataloader.evaluator = L(build_evaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)

optimizer = L(ClippedAdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.0),
    max_norm=0.01,
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.05,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(MultiStepParamScheduler)(
        values=[1.0, 0.1, 0.01], milestones=[327778, 355092, 368750]
    ),
    warmup_factor=0.001,
    warmup_length=10 / 368750,
    warmup_method="linear",
)

train = model_zoo.get_config("common/train.py").train
train.output_dir = "output/lazy/ov_panoptic_coco_vitb16"
train.max_iter = 368750
train.eval_period = 0
train.amp.enabled = True
