"""Cascade R-CNN's heads for open vocabularies."""

from collections.abc import Sequence
from copy import deepcopy

from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads
from detectron2.structures import Instances
from torch import Tensor

from clipself_d2.backbones.clip_vit import CLIP_FEATURE
from clipself_d2.detection.output_layers import CLIP_FIELD, OpenVocabFastRCNNOutputLayers
from clipself_d2.detection.roi_heads import OpenVocabMixin, check_widths, embed_proposals


class OpenVocabCascadeROIHeads(OpenVocabMixin, CascadeROIHeads):
    """Detectron2's cascade with a text classifier in every stage and CLIP's scores at test time.

    Every stage is a head of F-ViT: it fuses its own scores with CLIP's of the boxes that enter it,
    so that the later stages' CLIP sees refined boxes; the stages' scores are then averaged. Each
    stage learns a scale of its own. A mask head must be class-agnostic.

    Args:
        box_in_features: Names of the levels that boxes are pooled from, ``clip`` not among them.
        box_predictors: A predictor with a text classifier for every stage.
        clip_stride: Input pixels per cell of the feature ``clip``.
        kwargs: Further keyword arguments of ``CascadeROIHeads``; the number of classes is the
            classifiers'.

    Reference: Cascade R-CNN, arXiv 1712.00726; F-ViT, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(
        self,
        *,
        box_in_features: Sequence[str],
        box_predictors: Sequence[OpenVocabFastRCNNOutputLayers],
        clip_stride: float,
        **kwargs: object,
    ) -> None:
        super().__init__(
            box_in_features=list(box_in_features),
            box_predictors=list(box_predictors),
            num_classes=box_predictors[0].classifier.num_classes,
            **kwargs,
        )
        # Every stage gets these maps, the dense one at the end.
        self.box_in_features = [*box_in_features, CLIP_FEATURE]
        self.clip_stride = clip_stride

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, object]:
        head = cfg.MODEL.ROI_BOX_CASCADE_HEAD
        parts = super()._init_box_head(cfg, input_shape)
        shape = parts["box_heads"][0].output_shape
        # The text embeddings are built once for all stages.
        options = OpenVocabFastRCNNOutputLayers.from_config(cfg, shape)
        classifier = options.pop("classifier")
        check_widths(classifier, input_shape[CLIP_FEATURE].channels)
        predictors = []
        for weights in head.BBOX_REG_WEIGHTS:
            options["box2box_transform"] = Box2BoxTransform(weights=weights)
            stage = OpenVocabFastRCNNOutputLayers(classifier=deepcopy(classifier), **options)
            predictors.append(stage)
        return {**parts, "box_predictors": predictors}

    def _forward_box(
        self,
        features: dict[str, Tensor],
        proposals: list[Instances],
        targets: list[Instances] | None = None,
    ) -> dict[str, Tensor] | list[Instances]:
        if not self.training:
            # The first stage adds a field; the caller's proposals are left as they are.
            proposals = [Instances(item.image_size, **item.get_fields()) for item in proposals]
        return super()._forward_box(features, proposals, targets)

    def _run_stage(
        self, features: list[Tensor], proposals: list[Instances], stage: int
    ) -> tuple[Tensor, Tensor]:
        *levels, dense_NDhw = features
        if not self.training:
            embedded = embed_proposals(dense_NDhw, proposals, self.clip_stride)
            # Detectron2 hands these very objects to the predictor's predict_probs.
            for item, copy in zip(proposals, embedded, strict=True):
                item.set(CLIP_FIELD, copy.get(CLIP_FIELD))
        predictions: tuple[Tensor, Tensor] = super()._run_stage(levels, proposals, stage)
        return predictions
