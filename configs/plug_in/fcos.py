"""Detectron2's FCOS on F-ViT's pyramid over a frozen CLIP, with p6 and p7."""

from detectron2 import model_zoo

from .common.emoji import (  # noqa: F401  (parts of the config)
    dataloader,
    lr_multiplier,
    one_stage_pyramid,
    optimizer,
    pixel_mean,
    pixel_std,
    train,
)

model = model_zoo.get_config("common/models/fcos.py").model
model.backbone = one_stage_pyramid
model.pixel_mean = pixel_mean
model.pixel_std = pixel_std
dataloader.train.mapper.use_instance_mask = False
train.output_dir = "output/plug_in/fcos"
