"""Open-vocabulary panoptic segmentation over a frozen CLIP image tower.

Legend: N images, Q queries, K classes, D joint embedding, h w cells.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling import Backbone, build_backbone
from detectron2.modeling.postprocessing import sem_seg_postprocess
from detectron2.structures import ImageList
from torch import Tensor

from clipself_d2.backbones.clip_vit import CLIP_FEATURE
from clipself_d2.layers.region_pool import mask_embeddings
from clipself_d2.layers.score_fusion import ensemble_log_probs
from clipself_d2.layers.segment_classifier import SegmentTextClassifier
from clipself_d2.parts.pixels import PixelModel
from clipself_d2.parts.text_embeddings import build_segment_classifier, training_embeddings
from clipself_d2.segmentation.mask_decoder import MaskedAttentionDecoder
from clipself_d2.segmentation.mask_losses import MaskLoss, mask_losses
from clipself_d2.segmentation.merge import MergeRules, instances_of, panoptic_map, semantic_map
from clipself_d2.segmentation.pixel_decoder import PixelDecoder

POOLINGS = ("hard", "soft", "tokens")
TASKS = ("panoptic", "semantic", "instance")


@dataclass(frozen=True)
class ClipScores:
    """How the tower's dense map scores masks, and how much that counts.

    Attributes:
        scale: Multiplier of the cosine.
        alpha: Exponent of CLIP's probability for base classes, in [0, 1].
        beta: The same for novel classes.
        recognition: Exponent of CLIP's certainty in a mask's objectness; 0 leaves it out.
        pooling: What CLIP sees of a mask: "hard" (mean of the dense map inside), "soft" (mean
            weighted by the mask's probability) or "tokens" (copies of the class token that attend
            to the mask's patches, ODISE's way, which runs the tower a second time).
    """

    scale: float = 100.0
    alpha: float = 0.4
    beta: float = 0.8
    recognition: float = 0.0
    pooling: str = "hard"

    def __post_init__(self) -> None:
        """Check the pooling."""
        if self.pooling not in POOLINGS:
            raise ValueError(f"the pooling is {self.pooling!r}; it is one of {', '.join(POOLINGS)}")


class OpenVocabPanoptic(PixelModel):
    """Mask2Former whose classes are words, scored by its own head and by the CLIP it stands on.

    The tower is that of the backbone; frozen, its dense map still says what a mask shows, also for
    classes that the head was never trained on. Training takes Detectron2's items with
    ``instances`` of ``gt_classes`` (things and stuff alike) and ``gt_masks``; only base classes and
    void enter the loss.

    Args:
        backbone: Backbone with the pixel decoder's features and ``clip``.
        pixel_decoder: Maps for queries and masks.
        decoder: Predicts masks and their embeddings.
        classifier: Words of the classes.
        clip_scores: How CLIP's scores are made and weighed.
        loss: Weights and points of the losses.
        merging: How masks become segments and instances.
        tasks: Which of "panoptic", "semantic" and "instance" inference returns.
        pixel_mean: Mean of the pixels, RGB, 0 to 255.
        pixel_std: Their deviation.

    Raises:
        ValueError: If the backbone has no map ``clip``, a task or the pooling is unknown, or the
            widths of words and map differ.

    Reference: FC-CLIP, arXiv 2308.02487, on a ViT distilled by CLIPSelf, arXiv 2310.01403, in place
    of its ConvNeXt; pooled from the value path, which that distillation trains.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        pixel_decoder: PixelDecoder,
        decoder: MaskedAttentionDecoder,
        classifier: SegmentTextClassifier,
        clip_scores: ClipScores | None = None,
        loss: MaskLoss | None = None,
        merging: MergeRules | None = None,
        tasks: Sequence[str] = TASKS,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        unknown = [task for task in tasks if task not in TASKS]
        if unknown or not tasks:
            raise ValueError(
                f"MODEL.OV_PANOPTIC.TASKS is {list(tasks)}; name some of {', '.join(TASKS)}"
            )
        # Raises in words of its own where there is no such map.
        width = backbone.output_shape()[CLIP_FEATURE].channels
        if classifier.embed_dim != width:
            raise ValueError(
                f"the words' embeddings are {classifier.embed_dim}-d, but the tower's dense map is "
                f"{width}-d; take those of the tower's own CLIP"
            )
        self.backbone, self.pixel_decoder, self.decoder = backbone, pixel_decoder, decoder
        self.classifier = classifier
        self.clip_scores = clip_scores or ClipScores()
        self.loss, self.merging = loss or MaskLoss(), merging or MergeRules()
        self.tasks = tuple(tasks)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """Read MODEL.OV_PANOPTIC, MODEL.OPEN_VOCAB and MODEL.SEM_SEG_HEAD.

        Features, channels and norm of the pixel decoder are IN_FEATURES, CONVS_DIM and NORM of
        MODEL.SEM_SEG_HEAD.
        """
        options, words, head = cfg.MODEL.OV_PANOPTIC, cfg.MODEL.OPEN_VOCAB, cfg.MODEL.SEM_SEG_HEAD
        backbone = build_backbone(cfg)
        classifier = build_segment_classifier(training_embeddings(cfg), scale=words.SCALE)
        return {
            "backbone": backbone,
            "pixel_decoder": PixelDecoder(
                input_shape=backbone.output_shape(),
                in_features=head.IN_FEATURES,
                channels=head.CONVS_DIM,
                norm=head.NORM,
                attention_layers=options.PIXEL_ATTENTION_LAYERS,
            ),
            "decoder": MaskedAttentionDecoder(
                channels=head.CONVS_DIM,
                embed_dim=classifier.embed_dim,
                num_queries=options.NUM_QUERIES,
                num_layers=options.NUM_LAYERS,
                hidden=8 * head.CONVS_DIM,
            ),
            "classifier": classifier,
            "clip_scores": ClipScores(
                scale=words.CLIP_SCALE,
                alpha=words.ENSEMBLE_ALPHA,
                beta=words.ENSEMBLE_BETA,
                recognition=options.RECOGNITION,
                pooling=options.POOLING,
            ),
            "loss": MaskLoss(void=words.BACKGROUND_WEIGHT, num_points=options.NUM_POINTS),
            "merging": MergeRules(num_instances=cfg.TEST.DETECTIONS_PER_IMAGE),
            "tasks": options.TASKS,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def forward(self, batched_inputs: Sequence[Mapping[str, Any]]) -> Any:
        """Train on, or segment, pictures.

        Args:
            batched_inputs: Detectron2's items: ``image`` (3, H, W) RGB, and for training
                ``instances`` with ``gt_classes`` and ``gt_masks`` (BitMasks); for inference
                optionally ``height`` and ``width`` of the output.

        Returns:
            In training the losses by name, those of earlier layers with their number. Else one
            dict a picture with ``panoptic_seg`` (map and ``segments_info``), ``sem_seg``
            (K, H, W) and ``instances``, as ``tasks`` says.
        """
        images = ImageList.from_tensors(
            [self.normalise(self.moved(item["image"])) for item in batched_inputs],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        features = self.backbone(images.tensor)
        predictions = self.decoder(*self.pixel_decoder(features))
        if self.training:
            return self._losses(predictions, batched_inputs, images)
        last = predictions[-1]
        logits = self.classifier(last.embedding)
        results = []
        for number, item in enumerate(batched_inputs):
            size = images.image_sizes[number]
            padded = tuple(images.tensor.shape[-2:])
            masks = F.interpolate(last.masks[number][None].float(), padded, mode="bilinear")[0]
            # The picture without its padding.
            masks = masks[:, : size[0], : size[1]]
            log_probs = self._score(logits[number], masks, features, images, number)
            height, width = item.get("height", size[0]), item.get("width", size[1])
            masks = sem_seg_postprocess(masks, size, height, width)
            results.append(self._results(log_probs, masks))
        return results

    def _losses(
        self, predictions: Sequence[Any], items: Sequence[Mapping[str, Any]], images: ImageList
    ) -> dict[str, Tensor]:
        """Losses of every layer on base classes and void."""
        base_K = self.classifier.base_mask
        columns = torch.cat([base_K, base_K.new_ones(1)])
        # Number of each base class among the base classes alone, the columns of the loss.
        number_K = base_K.cumsum(0) - 1
        classes, truth = [], []
        padded = images.tensor.shape[-2:]
        for item in items:
            instances = item["instances"].to(self.device)
            labels = instances.gt_classes
            masks = instances.gt_masks.tensor
            known = base_K[labels]
            classes.append(number_K[labels[known]])
            height, width = masks.shape[-2:]
            pad = (0, padded[1] - width, 0, padded[0] - height)
            truth.append(F.pad(masks[known], pad))
        losses: dict[str, Tensor] = {}
        for layer, prediction in enumerate(predictions):
            logits = self.classifier(prediction.embedding)[..., columns]
            terms = mask_losses(logits, prediction.masks, classes, truth, self.loss)
            last = layer == len(predictions) - 1
            losses |= {name if last else f"{name}_{layer}": term for name, term in terms.items()}
        return losses

    def _score(
        self,
        logits: Tensor,
        masks: Tensor,
        features: Mapping[str, Tensor],
        images: ImageList,
        number: int,
    ) -> Tensor:
        """(Q, K + 1) log-probabilities of the head and of CLIP together."""
        stride = self.backbone.output_shape()[CLIP_FEATURE].stride
        size = images.image_sizes[number]
        height, width = (math.ceil(side / stride) for side in size)
        embedding, seen = self.embed_masks(
            features[CLIP_FEATURE][number, :, :height, :width],
            images.tensor[number, :, : size[0], : size[1]],
            masks,
        )
        rules = self.clip_scores
        clip_logits = rules.scale * self.classifier.cosine(embedding)[..., :-1]
        return ensemble_log_probs(
            logits,
            clip_logits,
            self.classifier.base_mask,
            alpha=rules.alpha,
            beta=rules.beta,
            seen_Q=seen,
            recognition=rules.recognition,
        )

    def embed_masks(self, dense: Tensor, image: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Embed what CLIP sees inside of mask logits (Q, H, W), on a dense map (D, h, w) unpadded.

        (Q, D) embeddings, and (Q,) False for masks that vanish on the grid.
        """
        grid = (dense.shape[-2], dense.shape[-1])
        if self.clip_scores.pooling == "tokens":
            inside = F.adaptive_max_pool2d(masks, grid) > 0
            embedding = self.backbone.bottom_up.tower.forward_regions(image[None], [inside])
            return embedding, inside.flatten(1).any(1)
        small = F.interpolate(masks[None], grid, mode="bilinear", align_corners=False)[0]
        seen = (small > 0).flatten(1).any(1)
        weights = small.sigmoid() if self.clip_scores.pooling == "soft" else (small > 0).float()
        return mask_embeddings(dense[None], [weights], normalize=False), seen

    def _results(self, log_probs: Tensor, masks: Tensor) -> dict[str, Any]:
        results: dict[str, Any] = {}
        thing_mask = self.classifier.thing_mask
        if "panoptic" in self.tasks:
            results["panoptic_seg"] = panoptic_map(log_probs, masks, thing_mask, self.merging)
        if "semantic" in self.tasks:
            results["sem_seg"] = semantic_map(log_probs, masks)
        if "instance" in self.tasks:
            most = self.merging.num_instances
            results["instances"] = instances_of(log_probs, masks, thing_mask, most=most)
        return results
