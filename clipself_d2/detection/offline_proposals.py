"""Detector on boxes that something else proposes: RegionCLIP's transfer and zero-shot inference."""

import itertools
from collections.abc import Mapping, MutableMapping, Sequence
from functools import cached_property
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import DatasetCatalog
from detectron2.modeling import (
    Backbone,
    GeneralizedRCNN,
    build_backbone,
    build_proposal_generator,
    build_roi_heads,
)
from detectron2.structures import Boxes, BoxMode, Instances
from torch import Tensor, nn

from clipself_d2.backbones.clip_resnet import ClipResNet
from clipself_d2.detection.regionclip_checkpoints import OFFLINE, is_published, rename_published
from clipself_d2.detection.res5_heads import CLIPRes5ROIHeads
from clipself_d2.parts.frozen_proposals import FrozenProposals, build_frozen_proposals


class AnnotatedBoxes:
    """Proposals that are the ground truth; crowds are left out.

    In training they are those of the mapped sample. In tests Detectron2's mapper drops the
    annotations, and they are looked up by the picture's file name.

    Args:
        names: Registered test sets, which are read when the first of their pictures comes.
    """

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)

    @cached_property
    def _boxes(self) -> dict[str, Tensor]:
        boxes = {}
        for record in itertools.chain.from_iterable(map(DatasetCatalog.get, self._names)):
            kept = [
                BoxMode.convert(item["bbox"], item["bbox_mode"], BoxMode.XYXY_ABS)
                for item in record.get("annotations", [])
                if not item.get("iscrowd", 0)
            ]
            # Without annotations (0,) becomes (0, 4).
            boxes[str(record["file_name"])] = torch.tensor(kept).float().reshape(-1, 4)
        return boxes

    def __call__(self, inputs: Sequence[Mapping[str, object]]) -> list[Instances]:
        """Give every sample ``proposal_boxes``, XYXY px of the resized picture.

        Without objectness in tests; a ValueError says that a picture is of none of the data
        sets.
        """
        return [self._propose(sample) for sample in inputs]

    def _propose(self, sample: Mapping[str, object]) -> Instances:
        image = sample["image"]
        assert isinstance(image, Tensor), f"image is {type(image)}"
        size = (int(image.shape[-2]), int(image.shape[-1]))
        instances = sample.get("instances")
        if isinstance(instances, Instances):
            boxes = instances.gt_boxes.tensor.clone()
            # Detectron2 adds the ground truth to proposals, with this field.
            objectness = boxes.new_zeros(len(boxes))
            return Instances(size, proposal_boxes=Boxes(boxes), objectness_logits=objectness)
        boxes = self._boxes.get(str(sample.get("file_name")))
        if boxes is None:
            raise ValueError(
                f"MODEL.PROPOSAL_GENERATOR.NAME AnnotatedBoxes finds no annotations of "
                f"{sample.get('file_name')}; DATASETS.TEST must name its data set"
            )
        # Detectron2 gives the size before its resizing.
        height, width = int(str(sample["height"])), int(str(sample["width"]))
        scale = torch.tensor([size[1] / width, size[0] / height]).repeat(2)
        return Instances(size, proposal_boxes=Boxes(boxes * scale))


# Values of MODEL.PROPOSAL_GENERATOR.NAME beside Detectron2's.
FROZEN_RPN, ANNOTATED_BOXES = "FrozenRPN", "AnnotatedBoxes"


class OfflineProposalRCNN(GeneralizedRCNN):
    """Detectron2's two-stage detector on the boxes of a frozen network, or of the annotations.

    The frozen network sees the same resized pictures with pixel statistics of its own, and is part
    of the checkpoint. Published checkpoints of RegionCLIP load under their own names; the text
    embeddings in them are left out.

    Args:
        backbone: Backbone.
        roi_heads: Heads; ``CLIPRes5ROIHeads`` on the backbone's tower.
        proposal_generator: An RPN that is trained with the detector, or None.
        offline_rpn: A frozen network, or None.
        annotated: Source of annotated boxes, or None; there is one source of boxes.
        fixed_rpn: Whether the frozen network was filled from a file of its own, which a published
            checkpoint does not overrule.
        kwargs: Further keyword arguments of ``GeneralizedRCNN``.

    Reference: RegionCLIP, arXiv 2112.09106, sections 3.3 and 4.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        roi_heads: nn.Module,
        proposal_generator: nn.Module | None = None,
        offline_rpn: FrozenProposals | None = None,
        annotated: AnnotatedBoxes | None = None,
        fixed_rpn: bool = False,
        **kwargs: object,
    ) -> None:
        super().__init__(
            backbone=backbone, roi_heads=roi_heads, proposal_generator=proposal_generator, **kwargs
        )
        self.offline_rpn = offline_rpn
        self.annotated = annotated
        self._fixed_rpn = fixed_rpn
        self.register_load_state_dict_pre_hook(_translate)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.PROPOSAL_GENERATOR.NAME, and what ``GeneralizedRCNN`` reads.

        The name is FrozenRPN (the network of MODEL.FROZEN_RPN), AnnotatedBoxes, or one of
        Detectron2's, which is trained with the detector. A ValueError says that the heads need a
        tower that the backbone has not, or that images are not RGB.
        """
        source = cfg.MODEL.PROPOSAL_GENERATOR.NAME
        is_frozen, is_annotated = source == FROZEN_RPN, source == ANNOTATED_BOXES
        if is_frozen and cfg.INPUT.FORMAT != "RGB":
            raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT}; CLIP reads RGB: set it")
        offline_rpn = build_frozen_proposals(cfg) if is_frozen else None
        annotated = AnnotatedBoxes(cfg.DATASETS.TEST) if is_annotated else None
        backbone, generator = build_backbone(cfg), None
        if not is_frozen and not is_annotated:
            generator = build_proposal_generator(cfg, backbone.output_shape())
        return {
            "backbone": backbone,
            "proposal_generator": generator,
            "roi_heads": _build_heads(cfg, backbone),
            "offline_rpn": offline_rpn,
            "annotated": annotated,
            "fixed_rpn": bool(cfg.MODEL.FROZEN_RPN.WEIGHTS),
            "input_format": cfg.INPUT.FORMAT,
            "vis_period": cfg.VIS_PERIOD,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: list[dict[str, Any]]) -> Any:
        """Train or detect, as ``GeneralizedRCNN``."""
        if self.training:
            batched_inputs = self._propose(batched_inputs)
        return super().forward(batched_inputs)

    def inference(
        self,
        batched_inputs: list[dict[str, Any]],
        detected_instances: list[Instances] | None = None,
        do_postprocess: bool = True,
    ) -> Any:
        """Detect, or add masks to given boxes, as ``GeneralizedRCNN``."""
        if detected_instances is None:
            batched_inputs = self._propose(batched_inputs)
        return super().inference(batched_inputs, detected_instances, do_postprocess)

    def _propose(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The samples with proposals; precomputed ones, if there are, are kept."""
        if self.offline_rpn is not None:
            found = self.offline_rpn([sample["image"] for sample in inputs])
        elif self.annotated is not None:
            found = self.annotated(inputs)
        else:
            return inputs
        return [{**sample, "proposals": boxes} for sample, boxes in zip(inputs, found, strict=True)]


def _build_heads(cfg: CfgNode, backbone: Backbone) -> nn.Module:
    shapes = backbone.output_shape()
    if CLIPRes5ROIHeads.__name__ != cfg.MODEL.ROI_HEADS.NAME:
        heads: nn.Module = build_roi_heads(cfg, shapes)
        return heads
    if not isinstance(backbone, ClipResNet):
        raise ValueError(
            "MODEL.ROI_HEADS.NAME CLIPRes5ROIHeads needs MODEL.BACKBONE.NAME "
            f"build_clip_resnet_backbone, got {type(backbone).__name__}"
        )
    return CLIPRes5ROIHeads(cfg, shapes, tower=backbone.tower)


def _translate(
    module: OfflineProposalRCNN, state: MutableMapping[str, Tensor], prefix: str, *_: object
) -> None:
    """Rename a published checkpoint; keep the RPN of a file of its own where this one has none."""
    if module.offline_rpn is not None and not module._fixed_rpn:
        published = {f"{prefix}{part}" for part in ("offline_backbone.", OFFLINE)}
        if not any(key.startswith(tuple(published)) for key in state):
            raise ValueError(
                "the checkpoint has no offline RPN and MODEL.FROZEN_RPN.WEIGHTS is empty, so that "
                "boxes would come from a random network; give MODEL.FROZEN_RPN.WEIGHTS"
            )
    own = {key: value for key, value in module.state_dict().items() if not prefix}
    if not prefix and is_published(state):
        rename_published(state, own, keep_offline=module._fixed_rpn)
    elif not any(key.startswith(prefix + OFFLINE) for key in state):
        # Detectron2's frozen norms forget statistics that a checkpoint lacks.
        state.update({key: value for key, value in own.items() if key.startswith(OFFLINE)})
