"""ROI heads that run the last stage and the attention pool of a CLIP ResNet on regions.

Legend: R regions, C channels, D joint embedding.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, build_mask_head
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.detection.embedding_predictor import EmbeddingFastRCNNOutputLayers

# Side of the pooled region per side of the attention pool's grid: the stride of res5.
_RES5_STRIDE = 2


@ROI_HEADS_REGISTRY.register()
class CLIPRes5ROIHeads(ROIHeads):
    """RoIAlign on ``res4``, then CLIP's own last stage and attention pool.

    Both belong to the backbone's tower, which ``share_tower`` hands over; the pooled side is that
    of which the pool has positions, so that none is interpolated: 14 for RN50, 18 for RN50x4. A
    mask head reads the last stage's map, and must be class-agnostic.

    Args:
        in_features: Name of the one feature that is pooled.
        pooler: RoIAlign on it.
        box_predictor: Predictor on (R, D) embeddings.
        mask_head: Head on (R, C5, side, side), or None.
        num_classes: Number of training classes; None takes the classifier's.
        kwargs: Further keyword arguments of Detectron2's ``ROIHeads``.

    Raises:
        ValueError: If there is not one feature, or ``num_classes`` is not the classifier's.

    Reference: RegionCLIP, arXiv 2112.09106, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        in_features: Sequence[str],
        pooler: ROIPooler,
        box_predictor: EmbeddingFastRCNNOutputLayers,
        mask_head: BaseMaskRCNNHead | None = None,
        num_classes: int | None = None,
        **kwargs: object,
    ) -> None:
        _check_one(in_features)
        known = box_predictor.classifier.num_classes
        if num_classes not in (None, known):
            raise ValueError(
                f"num_classes is {num_classes} but the vocabulary has {known} classes; leave "
                "num_classes out"
            )
        super().__init__(num_classes=known, **kwargs)
        self.in_feature = in_features[0]
        self.pooler = pooler
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if mask_head is not None:
            self.mask_head: BaseMaskRCNNHead = mask_head
        # In a tuple, so that the tower keeps one owner and its weights one name.
        self._shared: tuple[ResNetTower, ...] = ()

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        """Read MODEL.ROI_HEADS, MODEL.ROI_BOX_HEAD and MODEL.ROI_MASK_HEAD.

        Args:
            cfg: The whole config.
            input_shape: Shapes of the backbone's features.

        Returns:
            Arguments of the constructor.

        Raises:
            ValueError: If masks are not class-agnostic.
        """
        kwargs: dict[str, object] = super().from_config(cfg)
        kwargs.pop("num_classes")
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        _check_one(names)
        head = cfg.MODEL.ROI_BOX_HEAD
        strides = [input_shape[name].stride for name in names]
        kwargs["pooler"] = ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=tuple(1.0 / stride for stride in strides),
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
        )
        options = EmbeddingFastRCNNOutputLayers.from_config(cfg, ShapeSpec())
        options["input_shape"] = ShapeSpec(channels=options["classifier"].embed_dim)
        kwargs["in_features"] = names
        kwargs["box_predictor"] = EmbeddingFastRCNNOutputLayers(**options)
        if cfg.MODEL.MASK_ON:
            kwargs["mask_head"] = _build_mask_head(cfg, 2 * input_shape[names[0]].channels)
        return kwargs

    def share_tower(self, tower: ResNetTower) -> None:
        """Take the last stage and the attention pool of a tower; they stay the tower's.

        Args:
            tower: The backbone's tower.

        Raises:
            ValueError: If the pool has positions for another grid, or the text another width.
        """
        side = _RES5_STRIDE * tower.image_size // tower.patch_size
        if self.pooler.output_size != (side, side):
            raise ValueError(
                f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION is {self.pooler.output_size[0]}, but the "
                f"attention pool of {tower.name} has positions for regions of {side} x {side} "
                f"cells; set it to {side}"
            )
        if tower.embed_dim != self.box_predictor.classifier.embed_dim:
            raise ValueError(
                f"text embeddings are {self.box_predictor.classifier.embed_dim}-d but {tower.name} "
                f"projects to {tower.embed_dim}-d; MODEL.VOCABULARY.EMBEDDINGS must come from "
                "MODEL.CLIP.NAME"
            )
        self._shared = (tower,)

    @property
    def tower(self) -> ResNetTower:
        """The backbone's tower.

        Raises:
            ValueError: If none was shared.
        """
        if not self._shared:
            raise ValueError(
                "CLIPRes5ROIHeads runs the backbone's last stage, and MODEL.META_ARCHITECTURE "
                "OfflineProposalRCNN is what hands it over; for an RPN trained with the detector, "
                "set MODEL.REGIONCLIP.PROPOSALS own there"
            )
        return self._shared[0]

    def region_maps(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Run the last stage on regions.

        Args:
            features: The backbone's, with (N, C4, h, w).
            boxes: XYXY px for each image.

        Returns:
            (R, C5, side, side).
        """
        return self.tower.forward_res5(self.pooler([features[self.in_feature]], boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Train on, or detect in, proposals.

        Args:
            images: Unused.
            features: The backbone's.
            proposals: With ``proposal_boxes``, for each image.
            targets: Ground truth, in training.

        Returns:
            Sampled proposals and losses in training; else detections and no loss.
        """
        if not self.training:
            found = self._detect(features, proposals)
            return self.forward_with_given_boxes(features, found), {}
        assert targets is not None, "training without targets"
        sampled = self.label_and_sample_proposals(proposals, targets)
        maps = self.region_maps(features, [item.proposal_boxes for item in sampled])
        losses = self.box_predictor.losses(self.box_predictor(self.tower.pool(maps)), sampled)
        if self.mask_on:
            losses.update(self._mask_loss(maps, sampled))
        return sampled, losses

    def forward_with_given_boxes(
        self, features: dict[str, Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Add masks to detections.

        Args:
            features: The backbone's.
            instances: With ``pred_boxes`` and ``pred_classes``.

        Returns:
            The same, with ``pred_masks`` where there is a mask head.
        """
        if not self.mask_on:
            return instances
        maps = self.region_maps(features, [item.pred_boxes for item in instances])
        masked: list[Instances] = self.mask_head(maps, instances)
        return masked

    def _detect(self, features: dict[str, Tensor], proposals: list[Instances]) -> list[Instances]:
        maps = self.region_maps(features, [item.proposal_boxes for item in proposals])
        predictions = self.box_predictor(self.tower.pool(maps))
        found, _ = self.box_predictor.inference(predictions, proposals)
        return found

    def _mask_loss(self, maps: Tensor, sampled: list[Instances]) -> dict[str, Tensor]:
        foreground, masks = select_foreground_proposals(sampled, self.num_classes)
        chosen = torch.cat(masks)
        if not chosen.any():
            # The head takes part in the step, so that other processes do not wait for gradients.
            return {"loss_mask": self.mask_head.layers(maps[:1]).sum() * 0.0}
        losses: dict[str, Tensor] = self.mask_head(maps[chosen], foreground)
        return losses


def _check_one(in_features: Sequence[str]) -> None:
    if len(in_features) != 1:
        raise ValueError(
            f"MODEL.ROI_HEADS.IN_FEATURES is {list(in_features)}; CLIPRes5ROIHeads pools one "
            "feature, res4"
        )


def _build_mask_head(cfg: CfgNode, channels: int) -> BaseMaskRCNNHead:
    if not cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK:
        raise ValueError(
            "masks of each class of their own cannot follow a change of vocabulary; set "
            "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK to True"
        )
    side = cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION // _RES5_STRIDE
    head: BaseMaskRCNNHead = build_mask_head(
        cfg, ShapeSpec(channels=channels, width=side, height=side)
    )
    return head
