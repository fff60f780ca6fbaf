"""Detectron2's RetinaNet, the lazy way, on F-ViT's pyramid over a frozen CLIP."""

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

model = model_zoo.get_config("common/models/retinanet.py").model
model.backbone = one_stage_pyramid
model.pixel_mean = pixel_mean
model.pixel_std = pixel_std
model.input_format = "RGB"
dataloader.train.mapper.use_instance_mask = False
train.output_dir = "output/plug_in/retinanet_lazy"
