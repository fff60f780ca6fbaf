"""F-ViT with EVA02-CLIP-B/16 on OV-COCO, as configs/coco_ov/fvit_untouched_eva02_b16.yaml.

A distilled tower: ``model.backbone.backbone.tower.weights=output/distill/.../model_final.pth``.
Another CLIP: ``shared.clip``, ``shared.weights``, the tower's ``tap_blocks``, the patch in
``model.roi_heads.clip_stride``, the width of the joint embedding in ``box_head.fc_dims``. Masks:
``mask_in_features``, ``mask_pooler`` and ``mask_head`` with ``num_classes=1`` in the ROI heads.
"""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import FastRCNNConvFCHead
from detectron2.solver import WarmupParamScheduler
from detectron2.solver.build import get_default_optimizer_params
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf

from clipself_d2.data.build import build_detection_train_loader
from clipself_d2.data.detection_mapper import PictureMapper, lsj_augmentations
from clipself_d2.detection import OpenVocabFastRCNNOutputLayers, OpenVocabROIHeads
from clipself_d2.detection.anchors import HeldAnchorGenerator
from clipself_d2.detection.rpn import JointRPN, NormRPNHead
from clipself_d2.engine.solver import ClippedAdamW
from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.text_embeddings import build_text_classifier, dataset_embeddings

from .common.clip_vit_fpn import backbone

iterations_per_epoch = 1684  # 107,761 images / 64
shared = {
    "size": 640,
    "clip": "EVA02-B-16",
    "weights": "merged2b_s8b_b131k",
    "templates": "vild",
    "cache_dir": "output/text_embeddings",
    "classes_of": "coco_ov_train",
}
levels = ["p2", "p3", "p4", "p5", "p6"]

backbone.backbone.tower.name = "${shared.clip}"
backbone.backbone.tower.weights = "${shared.weights}"
backbone.backbone.tower.precision = "auto"
backbone.square_size = "${shared.size}"

model = L(GeneralizedRCNN)(
    backbone=backbone,
    proposal_generator=L(JointRPN)(
        in_features=levels,
        head=L(NormRPNHead)(in_channels=256, num_anchors=3, conv_dims=[-1, -1], norm=""),
        anchor_generator=L(HeldAnchorGenerator)(
            sizes=[[32], [64], [128], [256], [512]],
            aspect_ratios=[0.5, 1.0, 2.0],
            strides=[4, 8, 16, 32, 64],
            offset=0.0,
        ),
        anchor_matcher=L(Matcher)(
            thresholds=[0.3, 0.7], labels=[0, -1, 1], allow_low_quality_matches=True
        ),
        box2box_transform=L(Box2BoxTransform)(weights=[1.0, 1.0, 1.0, 1.0]),
        batch_size_per_image=256,
        positive_fraction=0.5,
        pre_nms_topk=(2000, 2000),
        post_nms_topk=(1000, 1000),
        nms_thresh=0.7,
    ),
    roi_heads=L(OpenVocabROIHeads)(
        clip_stride=16,
        batch_size_per_image=512,
        positive_fraction=0.25,
        proposal_matcher=L(Matcher)(
            thresholds=[0.5], labels=[0, 1], allow_low_quality_matches=False
        ),
        box_in_features=levels[:4],
        box_pooler=L(ROIPooler)(
            output_size=7,
            scales=(1.0 / 4, 1.0 / 8, 1.0 / 16, 1.0 / 32),
            sampling_ratio=0,
            pooler_type="ROIAlignV2",
        ),
        box_head=L(FastRCNNConvFCHead)(
            input_shape=ShapeSpec(channels=256, height=7, width=7),
            conv_dims=[256, 256, 256, 256],
            fc_dims=[512, 512],
            conv_norm="SyncBN",
        ),
        box_predictor=L(OpenVocabFastRCNNOutputLayers)(
            input_shape=ShapeSpec(channels=512),
            box2box_transform=L(Box2BoxTransform)(weights=(10, 10, 5, 5)),
            classifier=L(build_text_classifier)(
                embeddings=L(dataset_embeddings)(
                    name="${shared.classes_of}",
                    clip="${shared.clip}",
                    weights="${shared.weights}",
                    templates="${shared.templates}",
                    cache_dir="${shared.cache_dir}",
                ),
                background_mode="text",
                scale=50.0,
                learn_scale=True,
            ),
            background_weight=0.6,
            clip_scale=75.0,
            alpha=0.1,
            beta=0.8,
            test_score_thresh=0.01,
            test_nms_thresh=0.4,
            test_topk_per_image=100,
        ),
    ),
    # ImageNet's, as published.
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
    input_format="RGB",
)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_ov_train"),
    mapper=L(PictureMapper)(
        is_train=True,
        augmentations=L(lsj_augmentations)(size="${shared.size}", scale_range=(0.1, 2.0)),
        image_format="${model.input_format}",
    ),
    total_batch_size=64,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="coco_ov_val", filter_empty=False),
    mapper=L(PictureMapper)(
        is_train=False,
        augmentations=[
            L(T.ResizeShortestEdge)(short_edge_length="${shared.size}", max_size="${shared.size}")
        ],
        image_format="${model.input_format}",
    ),
    num_workers=4,
)
dataloader.evaluator = L(build_evaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)

optimizer = L(ClippedAdamW)(
    params=L(get_default_optimizer_params)(base_lr="${..lr}", weight_decay_norm=0.1),
    max_norm=1.0,
    lr=1e-4,
    betas=(0.9, 0.999),
    weight_decay=0.1,
)
lr_multiplier = L(WarmupParamScheduler)(
    # Constant; fvcore's own constant scheduler refuses the end of the last iteration.
    scheduler=L(LinearParamScheduler)(start_value=1.0, end_value=1.0),
    warmup_factor=0.001,
    warmup_length=250 / (3 * iterations_per_epoch),
    warmup_method="linear",
)

train = model_zoo.get_config("common/train.py").train
train.output_dir = "output/lazy/fvit_coco_vitb16"
train.max_iter = 3 * iterations_per_epoch
train.eval_period = iterations_per_epoch
train.checkpointer.period = iterations_per_epoch
train.amp.enabled = True
