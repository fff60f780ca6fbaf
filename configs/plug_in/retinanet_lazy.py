"""Detectron2's RetinaNet, the lazy way, on F-ViT's pyramid over a frozen CLIP, with p6 and p7."""

from detectron2 import model_zoo

from .common.emoji import (
    dataloader,
    one_stage_pyramid,
    pixel_mean,
    pixel_std,
    train,
)

model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone = one_stage_pyramid
model.pixel_mean = pixel_mean
model.pixel_std = pixel_std
model.input_format = "RGB"
dataloader.train.mapper.use_instance_mask = False
train.output_dir = "output/plug_in/retinanet_lazy"
