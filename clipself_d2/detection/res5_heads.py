"""ROI heads that run the last stage and the attention pool of a CLIP ResNet on regions.

Legend: R regions, C channels, D joint embedding.
"""

from collections.abc import Sequence

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.poolers import ROIPooler
from detectron2.modeling.roi_heads import ROIHeads, select_foreground_proposals
from detectron2.modeling.roi_heads.mask_head import BaseMaskRCNNHead, build_mask_head
from detectron2.structures import Boxes, ImageList, Instances
from torch import Tensor

from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.detection.embedding_predictor import EmbeddingFastRCNNOutputLayers
from clipself_d2.detection.roi_heads import check_masks, check_widths

# Side of the pooled region per side of the attention pool's grid: the stride of res5.
_RES5_STRIDE = 2


class CLIPRes5ROIHeads(ROIHeads):
    """RoIAlign on ``res4``, then CLIP's own last stage and attention pool.

    Both belong to the backbone's tower; the pool, which nothing else reads, is trained from here.
    The pooled side is that of which the pool has positions, so that none is interpolated: 14 for
    RN50, 18 for RN50x4. A mask head reads the last stage's map, and must be class-agnostic.

    Args:
        tower: The backbone's tower, which stays its owner.
        in_features: Name of the one feature that is pooled.
        pooler: RoIAlign on it.
        box_predictor: Predictor on (R, D) embeddings.
        mask_head: Head on (R, C5, side, side), or None.
        kwargs: Further keyword arguments of Detectron2's ``ROIHeads``; the number of classes is the
            classifier's.

    Raises:
        ValueError: If there is not one feature, the pool has positions for regions of another size,
            or the text has another width.

    Reference: RegionCLIP, arXiv 2112.09106, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        tower: ResNetTower,
        in_features: Sequence[str],
        pooler: ROIPooler,
        box_predictor: EmbeddingFastRCNNOutputLayers,
        mask_head: BaseMaskRCNNHead | None = None,
        **kwargs: object,
    ) -> None:
        if len(in_features) != 1:
            raise ValueError(
                f"MODEL.ROI_HEADS.IN_FEATURES is {list(in_features)}; CLIPRes5ROIHeads pools one "
                "feature, res4"
            )
        _check_side(pooler, tower)
        check_widths(box_predictor.classifier, tower.embed_dim)
        super().__init__(num_classes=box_predictor.classifier.num_classes, **kwargs)
        self.in_feature = in_features[0]
        self.pooler = pooler
        self.box_predictor = box_predictor
        self.mask_on = mask_head is not None
        if mask_head is not None:
            self.mask_head: BaseMaskRCNNHead = mask_head
        tower.visual.attnpool.requires_grad_(tower.trained_blocks != 0)
        # In a tuple, so that the tower keeps one owner and its weights one name.
        self._shared = (tower,)

    @classmethod
    def from_config(
        cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec], tower: ResNetTower | None = None
    ) -> dict[str, object]:
        """Read MODEL.ROI_HEADS, MODEL.ROI_BOX_HEAD and MODEL.ROI_MASK_HEAD.

        A ValueError says that there is no tower, or that masks are not class-agnostic.
        """
        if tower is None:
            raise ValueError(
                "CLIPRes5ROIHeads runs the backbone's last stage, and MODEL.META_ARCHITECTURE "
                "OfflineProposalRCNN is what hands it over; set it"
            )
        kwargs: dict[str, object] = super().from_config(cfg)
        kwargs.pop("num_classes")
        kwargs["tower"] = tower
        names = cfg.MODEL.ROI_HEADS.IN_FEATURES
        head = cfg.MODEL.ROI_BOX_HEAD
        strides = [input_shape[name].stride for name in names]
        kwargs["pooler"] = ROIPooler(
            output_size=head.POOLER_RESOLUTION,
            scales=tuple(1.0 / stride for stride in strides),
            sampling_ratio=head.POOLER_SAMPLING_RATIO,
            pooler_type=head.POOLER_TYPE,
        )
        # The width is known once the classifier is built; from_config reads no shape.
        options = EmbeddingFastRCNNOutputLayers.from_config(cfg, ShapeSpec())
        options["input_shape"] = ShapeSpec(channels=options["classifier"].embed_dim)
        kwargs["in_features"] = names
        kwargs["box_predictor"] = EmbeddingFastRCNNOutputLayers(**options)
        check_masks(cfg)
        if cfg.MODEL.MASK_ON:
            # res5 halves the side and doubles the channels of res4.
            side = head.POOLER_RESOLUTION // _RES5_STRIDE
            shape = ShapeSpec(channels=2 * input_shape[names[0]].channels, width=side, height=side)
            kwargs["mask_head"] = build_mask_head(cfg, shape)
        return kwargs

    @property
    def tower(self) -> ResNetTower:
        """The backbone's tower."""
        return self._shared[0]

    def region_maps(self, features: dict[str, Tensor], boxes: list[Boxes]) -> Tensor:
        """Run the last stage on regions, XYXY px for each image: (R, C5, side, side)."""
        return self.tower.forward_res5(self.pooler([features[self.in_feature]], boxes))

    def forward(
        self,
        images: ImageList,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, Tensor]]:
        """Train on, or detect in, proposals: as Detectron2's ``ROIHeads``."""
        if not self.training:
            maps = self.region_maps(features, [item.proposal_boxes for item in proposals])
            predictions = self.box_predictor(self.tower.pool(maps))
            found, _ = self.box_predictor.inference(predictions, proposals)
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
        """Add ``pred_masks`` to detections where there is a mask head."""
        if not self.mask_on:
            return instances
        maps = self.region_maps(features, [item.pred_boxes for item in instances])
        masked: list[Instances] = self.mask_head(maps, instances)
        return masked

    def _mask_loss(self, maps: Tensor, sampled: list[Instances]) -> dict[str, Tensor]:
        foreground, masks = select_foreground_proposals(sampled, self.num_classes)
        chosen = torch.cat(masks)
        if not chosen.any():
            # The head takes part in the step, so that other processes do not wait for gradients.
            return {"loss_mask": self.mask_head.layers(maps[:1]).sum() * 0.0}
        losses: dict[str, Tensor] = self.mask_head(maps[chosen], foreground)
        return losses


def _check_side(pooler: ROIPooler, tower: ResNetTower) -> None:
    side = _RES5_STRIDE * tower.image_size // tower.patch_size
    if pooler.output_size != (side, side):
        raise ValueError(
            f"MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION is {pooler.output_size[0]}, but the attention "
            f"pool of {tower.name} has positions for regions of {side} x {side} cells; set it to "
            f"{side}"
        )
