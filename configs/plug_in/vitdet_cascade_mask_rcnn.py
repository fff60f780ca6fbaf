"""Detectron2's Cascade Mask R-CNN on the simple pyramid over CLIP."""

from detectron2 import model_zoo

from .common.emoji import (  # noqa: F401  (parts of the config)
    dataloader,
    lr_multiplier,
    optimizer,
    pixel_mean,
    pixel_std,
    simple_pyramid,
    train,
)

model = model_zoo.get_config("common/models/cascade_rcnn.py").model
model.backbone = simple_pyramid
model.pixel_mean = pixel_mean
model.pixel_std = pixel_std
model.input_format = "RGB"
# Few regions, for a CPU.
model.proposal_generator.post_nms_topk = (100, 100)
model.roi_heads.batch_size_per_image = 32
train.output_dir = "output/plug_in/vitdet_cascade_mask_rcnn"
