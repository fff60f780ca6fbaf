"""Class-agnostic region proposals of a trained RPN, as a COCO-format file."""

import logging
import os
from datetime import datetime, timezone
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from detectron2.utils.logger import log_every_n_seconds
from torch import nn
from torchvision.ops import box_convert

from clipself_d2.data.build import build_detection_test_loader_from_cfg
from clipself_d2.parts.json_file import write_json

logger = logging.getLogger(__name__)

BATCH_SIZE = 8


def write_proposals(
    cfg: CfgNode,
    model: nn.Module,
    dataset_name: str,
    output: Path,
    *,
    max_per_image: int,
    min_score: float,
) -> int:
    """Run a ``ProposalNetwork`` over a data set, write its boxes, and return their number.

    Args:
        cfg: The whole config; its provenance keys go into the file.
        model: The network.
        dataset_name: Registered data set with the images.
        output: The json file to write; it appears whole or not at all.
        max_per_image: Most boxes kept of one image, best first.
        min_score: Least objectness kept, a probability in [0, 1].
    """
    loader = build_detection_test_loader_from_cfg(cfg, dataset_name, batch_size=BATCH_SIZE)
    images: list[dict] = []
    annotations: list[dict] = []
    model.eval()
    with torch.no_grad():
        for number, inputs in enumerate(loader, start=1):
            for item, result in zip(inputs, model(inputs), strict=True):
                if "proposals" not in result:
                    raise ValueError(
                        f"{type(model).__name__} gives no proposals; set MODEL.META_ARCHITECTURE "
                        "ProposalNetwork"
                    )
                images.append(_image_entry(item))
                annotations += _annotation_entries(
                    item["image_id"],
                    result["proposals"],
                    max_per_image,
                    min_score,
                    len(annotations),
                )
            log_every_n_seconds(logging.INFO, f"proposals: {number}/{len(loader)} batches", n=10)
    document = {
        "info": {
            "description": "class-agnostic region proposals",
            "date_created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "dataset": dataset_name,
            "weights": cfg.MODEL.WEIGHTS,
            "clip": [cfg.MODEL.CLIP.NAME, cfg.MODEL.CLIP.PRETRAINED, cfg.MODEL.CLIP.WEIGHTS],
            "max_per_image": max_per_image,
            "min_score": min_score,
        },
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 1, "name": "object"}],
    }
    write_json(output, document)
    logger.info("%d proposals on %d images in %s", len(annotations), len(images), output)
    return len(annotations)


def _image_entry(item: dict) -> dict:
    return {
        "id": item["image_id"],
        "file_name": os.path.basename(item["file_name"]),
        "height": item["height"],
        "width": item["width"],
    }


def _annotation_entries(
    image_id: int, proposals: Instances, max_per_image: int, min_score: float, first_id: int
) -> list[dict]:
    scores = proposals.objectness_logits.sigmoid()
    order = scores.argsort(descending=True)[:max_per_image]
    order = order[scores[order] >= min_score]
    boxes = box_convert(proposals.proposal_boxes.tensor[order], "xyxy", "xywh")
    rows = zip(boxes.tolist(), scores[order].tolist(), strict=True)
    return [
        {
            "id": first_id + number + 1,
            "image_id": image_id,
            "category_id": 1,
            "bbox": [round(side, 2) for side in box],
            "area": round(box[2] * box[3], 2),
            "iscrowd": 0,
            "score": round(score, 4),
        }
        for number, (box, score) in enumerate(rows)
    ]
