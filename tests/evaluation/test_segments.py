"""The evaluators that a panoptic data set's metadata asks for, on its own truth."""

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from clipself_d2.evaluation.build import build_evaluator
from clipself_d2.parts.label_maps import read_segment_colours, segment_ids


def perfect(record, thing_count: int, num_classes: int) -> dict[str, object]:
    ids = segment_ids(read_segment_colours(record["pan_seg_file_name"]))
    planes, masks, labels = torch.zeros(num_classes, *ids.shape), [], []
    for segment in record["segments_info"]:
        mask = torch.from_numpy(ids == segment["id"])
        planes[segment["category_id"]][mask] = 1
        if segment["category_id"] < thing_count:
            masks.append(mask)
            labels.append(segment["category_id"])
    instances = Instances(ids.shape)
    instances.pred_masks = torch.stack(masks)
    instances.scores = torch.ones(len(masks))
    instances.pred_classes = torch.tensor(labels)
    instances.pred_boxes = Boxes(torch.zeros(len(masks), 4))
    return {
        "panoptic_seg": (torch.from_numpy(ids), record["segments_info"]),
        "sem_seg": planes,
        "instances": instances,
    }


def test_the_truth_scores_full_marks_everywhere(emoji_data, tmp_path) -> None:
    name = "emoji_ov_panoptic_val"
    metadata = MetadataCatalog.get(name)
    things = len(metadata.thing_classes)
    count = things + len(metadata.stuff_classes)
    evaluator = build_evaluator(name, str(tmp_path))
    evaluator.reset()
    for record in DatasetCatalog.get(name):
        evaluator.process([record], [perfect(record, things, count)])
    scores = evaluator.evaluate()
    assert scores["panoptic_seg"]["PQ"] == scores["sem_seg"]["mIoU"] == 100.0
    assert scores["panoptic_seg"]["PQ_novel"] == 100.0
    # Polygons of the file of instances round the masks' edges.
    assert scores["segm"]["AP50"] == 100.0
    assert (tmp_path / "classes.csv").is_file()
    assert np.isfinite(scores["segm"]["AP"])
