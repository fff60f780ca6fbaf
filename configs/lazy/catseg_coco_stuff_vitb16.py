"""CAT-Seg with OpenAI's ViT-B/16 on COCO-Stuff, as configs/coco_stuff/catseg_openai_b16.yaml.

A distilled tower: ``model.tower.weights=output/distill/.../model_final.pth`` with
``model.tower.dense_form=clipself``. Another CLIP: ``shared.clip``, ``shared.weights``, the width of
its joint embedding in ``model.aggregator.embed_dim``.
"""

import detectron2.data.transforms as T
from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.evaluation import SemSegEvaluator
from detectron2.solver import WarmupParamScheduler
from fvcore.common.param_scheduler import CosineParamScheduler
from omegaconf import OmegaConf

from clipself_d2.data.detection_mapper import semantic_augmentations
from clipself_d2.engine.solver import ClippedAdamW, slower_optimizer_params
from clipself_d2.parts.text_embeddings import build_text_classifier
from clipself_d2.segmentation import CATSegmentor, CatSegOptions, CostAggregator, WindowPlan
from clipself_d2.segmentation.lazy import learning_tower, learning_words, semantic_embeddings

shared = {
    "clip": "ViT-B-16-quickgelu",
    "weights": "openai",
    "templates": "catseg",
    "train": "coco_stuff_sem_seg_train",
    "test": "coco_stuff_sem_seg_val",
}
words = {
    "name": "${shared.clip}",
    "weights": "${shared.weights}",
    "dataset": "${shared.train}",
    "templates": "${shared.templates}",
}

model = L(CATSegmentor)(
    tower=L(learning_tower)(
        name="${shared.clip}", weights="${shared.weights}", dense_form="catseg"
    ),
    words=L(learning_words)(**words),
    classifier=L(build_text_classifier)(
        embeddings=L(semantic_embeddings)(**words), background_mode="zero", learn_scale=False
    ),
    aggregator=L(CostAggregator)(embed_dim=512, guide_dims=[256, 128]),
    options=L(CatSegOptions)(
        clip_size=384, windows=L(WindowPlan)(window_size=384, canvas_size=640)
    ),
    pixel_mean=[122.7709, 116.7460, 104.0937],
    pixel_std=[68.5005, 66.6322, 70.3232],
)

dataloader = OmegaConf.create()
dataloader.train = L(build_detection_train_loader)(
    dataset=L(get_detection_dataset_dicts)(names="${shared.train}", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=True,
        augmentations=L(semantic_augmentations)(sizes=[384], crop_size=[384, 384], max_area=1.0),
        image_format="RGB",
    ),
    total_batch_size=4,
    num_workers=4,
)
dataloader.test = L(build_detection_test_loader)(
    dataset=L(get_detection_dataset_dicts)(names="${shared.test}", filter_empty=False),
    mapper=L(DatasetMapper)(
        is_train=False,
        augmentations=[L(T.ResizeShortestEdge)(short_edge_length=640, max_size=2560)],
        image_format="RGB",
    ),
    num_workers=4,
)
dataloader.evaluator = L(SemSegEvaluator)(dataset_name="${..test.dataset.names}")

optimizer = L(ClippedAdamW)(
    params=L(slower_optimizer_params)(base_lr="${..lr}", multiplier=0.01, weight_decay_norm=0.0),
    max_norm=0.01,
    lr=2e-4,
    weight_decay=1e-4,
)
lr_multiplier = L(WarmupParamScheduler)(
    scheduler=L(CosineParamScheduler)(start_value=1.0, end_value=0.0),
    warmup_factor=1.0,
    warmup_length=0.0,
    warmup_method="linear",
)

train = model_zoo.get_config("common/train.py").train
train.output_dir = "output/lazy/catseg_coco_stuff_vitb16"
train.max_iter = 80000
train.amp.enabled = False
