"""What the lazy examples share: backbones over the embedded CLIP, emoji scenes, 20 iterations."""

import detectron2.data.transforms as T
import torch
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import LinearParamScheduler
from omegaconf import OmegaConf

from clipself_d2.backbones import ClipViT, ClipViTPyramid, ClipViTSimplePyramid
from clipself_d2.clip.model import load_tower
from clipself_d2.data.build import build_detection_train_loader
from clipself_d2.data.detection_mapper import PictureMapper
from clipself_d2.engine.solver import decayed_optimizer_params
from clipself_d2.evaluation.build import build_evaluator

# CLIP's mean and std x 255, RGB.
pixel_mean = [122.7709, 116.7460, 104.0937]
pixel_std = [68.5005, 66.6322, 70.3232]

# p2 to p6, for R-CNNs; all of the tower is trained.
simple_pyramid = L(ClipViTSimplePyramid)(
    backbone=L(ClipViT)(
        tower=L(load_tower)(name="ViT-Ti-8-emoji", weights="emoji"),
        tap_blocks=[5],
        trainable_blocks=-1,
        drop_path=0.1,
    ),
    strides=[4, 8, 16, 32],
    out_channels=256,
    norm="LN",
)

# p3 to p7, for one-stage detectors; the tower is frozen.
one_stage_pyramid = L(ClipViTPyramid)(
    backbone=L(ClipViT)(
        tower=L(load_tower)(name="ViT-Ti-8-emoji", weights="emoji"),
        tap_blocks=[2, 4, 5],
        trainable_blocks=0,
    ),
    strides=[8, 16, 32],
    out_channels=256,
    norm="GN",
    top_block=L(LastLevelP6P7)(in_channels=256, out_channels=256, in_feature="p5"),
)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="emoji_ov_train"),
    mapper=L(PictureMapper)(
        is_train=True,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=144, max_size=192)],
        image_format="RGB",
        use_instance_mask=True,
    ),
    total_batch_size=2,
    num_workers=1,
    seed="${train.seed}",
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="emoji_ov_val", filter_empty=False),
    mapper=L(PictureMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=144, max_size=192)],
        image_format="RGB",
    ),
    num_workers=1,
)
dataloader.evaluator = L(build_evaluator)(
    dataset_name="${..test.dataset.names}", output_dir="${train.output_dir}"
)

optimizer = L(torch.optim.AdamW)(
    params=L(decayed_optimizer_params)(base_lr="${..lr}", rate=0.8, weight_decay_norm=0.0),
    lr=5e-4,
    weight_decay=0.05,
)
lr_multiplier = L(WarmupParamScheduler)(
    # Constant; fvcore's own constant scheduler refuses the end of the last iteration.
    scheduler=L(LinearParamScheduler)(start_value=1.0, end_value=1.0),
    warmup_factor=0.001,
    warmup_length=0.25,
    warmup_method="linear",
)

train = model_zoo.get_config("common/train.py").train
train.device = "cpu"
train.max_iter = 20
train.checkpointer.period = 5
train.eval_period = 1000
train.seed = 0
