"""CAT-Seg: open-vocabulary semantic segmentation by aggregation of CLIP's cosines.

Legend: N images, V views, T classes, D joint embedding, H W pixels, h w grid of the tower.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.modeling.postprocessing import sem_seg_postprocess
from torch import Tensor, nn

from clipself_d2.clip import VisionTower
from clipself_d2.clip.towers.tokens import TokenTower
from clipself_d2.layers.text_classifier import TextClassifier
from clipself_d2.parts.image_tower import build_image_tower, load_whole_clip
from clipself_d2.parts.pixels import PixelModel
from clipself_d2.parts.text_embeddings import (
    build_text_classifier,
    read_text_embeddings,
    training_vocabulary,
)
from clipself_d2.segmentation.cost_aggregator import AggregatorSizes, CostAggregator, place_listed
from clipself_d2.segmentation.losses import check_labels, number_base, pixel_class_loss
from clipself_d2.segmentation.published_checkpoints import is_published, rename_published
from clipself_d2.segmentation.windows import WindowPlan
from clipself_d2.segmentation.words import LearnedWords
from clipself_d2.vocabulary import TextEmbeddings

Item = dict[str, object]
# Blocks whose outputs guide the decoder: after one third and two thirds of the tower.
_TAP_SHARES = (1 / 3, 2 / 3)
_IGNORE_LABEL = 255


@dataclass(frozen=True)
class ViewFeatures:
    """What the image tower tells of views; any vocabulary is scored on it.

    Attributes:
        dense: (V, D, h, w) dense map, unit norm.
        guides: The same before it was normalised, and two finer maps.
    """

    dense: Tensor
    guides: tuple[Tensor, Tensor, Tensor]

    def __getitem__(self, number: int) -> "ViewFeatures":
        rows = slice(number, number + 1)
        coarse, middle, fine = (guide[rows] for guide in self.guides)
        return ViewFeatures(self.dense[rows], (coarse, middle, fine))

    def __len__(self) -> int:
        return len(self.dense)


@dataclass(frozen=True)
class CatSegOptions:
    """How a ``CATSegmentor`` reads pictures and learns.

    Attributes:
        clip_size: Side to which the tower's input is resized, px.
        windows: Views at inference.
        shortlist: Most classes aggregated at inference; 0: the aggregator's own limit.
        mask_ignored: Whether the loss leaves ignored pixels out.
    """

    clip_size: int
    windows: WindowPlan
    shortlist: int = 0
    mask_ignored: bool = False


class CATSegmentor(PixelModel):
    """CAT-Seg on a CLIP ViT, untouched or distilled.

    The model is switched to other classes by ``use_vocabulary``; where the text tower is part of it
    the classes are embedded by that tower.

    Args:
        tower: Image tower with what is trained of it set; its ``dense_form`` is clipself for
            distilled weights and catseg for published checkpoints.
        words: Text tower and classes of training, where the text tower is trained; None takes the
            embeddings of ``classifier`` as they are.
        classifier: Holds the class embeddings.
        aggregator: Cost aggregation.
        tap_blocks: 0-based numbers of these blocks; empty takes those after one and two thirds.
        options: How pictures are read and what learns.
        pixel_mean: RGB mean, 0 to 255.
        pixel_std: RGB deviation.

    Raises:
        ValueError: If the tower has no tokens, or the blocks are not two.

    Reference: CAT-Seg, arXiv 2303.11797; on distilled weights CLIPSelf, arXiv 2310.01403, section
    4.3.
    """

    own_TD: Tensor

    @configurable
    def __init__(
        self,
        *,
        tower: VisionTower,
        words: LearnedWords | None,
        classifier: TextClassifier,
        aggregator: CostAggregator,
        options: CatSegOptions,
        tap_blocks: Sequence[int] = (),
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        if not isinstance(tower, TokenTower):
            raise ValueError(
                f"CAT-Seg reads the tokens of a ViT, which {tower.name} has not; set "
                "MODEL.CLIP.NAME to a ViT such as ViT-B-16-quickgelu or EVA02-B-16"
            )
        if len(tap_blocks) not in (0, 2):
            raise ValueError(
                f"MODEL.CLIP.TAP_BLOCKS is {list(tap_blocks)}; CAT-Seg reads two blocks, or [] for "
                "those after one and two thirds of the tower"
            )
        thirds = [max(0, round(share * tower.num_blocks) - 1) for share in _TAP_SHARES]
        self.tap_blocks = tuple(tap_blocks) or tuple(thirds)
        self.tower, self.words, self.aggregator = tower, words, aggregator
        self.classifier = classifier
        self.enlarge = nn.ModuleList(
            nn.ConvTranspose2d(tower.width, dim, kernel_size=times, stride=times)
            for dim, times in zip(aggregator.guide_dims, (2, 4), strict=True)
        )
        self.options = options
        self.register_buffer("own_TD", classifier.embeddings_KD.clone(), persistent=False)
        self.register_load_state_dict_pre_hook(_translate)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CAT_SEG, MODEL.CLIP, MODEL.VOCABULARY and the pixel statistics."""
        options, clip = cfg.MODEL.CAT_SEG, cfg.MODEL.CLIP
        vocabulary = training_vocabulary(cfg, semantic=True)
        words, original = None, None
        if clip.TEXT_TRAINABLE_BLOCKS:
            whole = load_whole_clip(cfg)
            original = whole.tower
            words = LearnedWords(
                text=whole.text,
                vocabulary=vocabulary,
                templates=cfg.MODEL.VOCABULARY.TEMPLATES,
                clip=clip.NAME,
            )
        tower = build_image_tower(
            cfg,
            original=original,
            reads_embedding=True,
            used=("TAP_BLOCKS", "TEXT_TRAINABLE_BLOCKS"),
        )
        embeddings = read_text_embeddings(cfg, vocabulary)
        embeddings.check(tower.embed_dim)
        return {
            "tower": tower,
            "words": words,
            "classifier": build_text_classifier(
                embeddings, background_mode="zero", learn_scale=False
            ),
            "aggregator": build_aggregator(cfg, tower.embed_dim),
            "tap_blocks": clip.TAP_BLOCKS,
            "options": CatSegOptions(
                clip_size=options.CLIP_SIZE,
                windows=WindowPlan(options.WINDOW_SIZE, options.CANVAS_SIZE),
                shortlist=options.SHORTLIST,
                mask_ignored=options.MASK_IGNORED,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
        }

    def train(self, mode: bool = True) -> "CATSegmentor":
        """Set the mode; a tower of which nothing is trained stays in eval mode."""
        super().train(mode)
        self.tower.train(mode and self.tower.trained_blocks != 0)
        return self

    def forward(self, batched_inputs: list[Item]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Learn from label maps, or segment.

        Args:
            batched_inputs: Items of Detectron2's mapper: ``image`` (3, H, W) RGB, 0 to 255; in
                training ``sem_seg`` (H, W) int64, 255 where there is no class; otherwise ``height``
                and ``width`` of the output, px.

        Returns:
            In training ``{"loss_sem_seg": scalar}``. Otherwise for each item ``{"sem_seg": (T,
            height, width)}``, scores in [0, 1].
        """
        if self.training:
            return self._losses(batched_inputs)
        outputs = []
        for item in batched_inputs:
            image: Tensor = item["image"]  # type: ignore[assignment]
            height, width = image.shape[-2:]
            size = (int(item.get("height", height)), int(item.get("width", width)))  # type: ignore[call-overload]
            outputs.append({"sem_seg": self.segment(self.encode_views(image), size)})
        return outputs

    def encode(self, pixels: Tensor) -> ViewFeatures:
        """Compute the features of pictures (V, 3, H, W), normalised, at ``clip_size``."""
        side = self.options.clip_size
        pixels = F.interpolate(pixels, (side, side), mode="bilinear", align_corners=False)
        learns = self.tower.trained_blocks != 0 and torch.is_grad_enabled()
        with torch.set_grad_enabled(learns):
            features = self.tower.forward_dense(pixels, self.tap_blocks)
        if features.lengths is None:
            raise RuntimeError("a tower of tokens gives the norms of its cells")
        middle, fine = (
            enlarge(block) for enlarge, block in zip(self.enlarge, features.blocks, strict=True)
        )
        raw = features.embedding * features.lengths
        return ViewFeatures(features.embedding, (raw, middle, fine))

    def encode_views(self, image: Tensor) -> ViewFeatures:
        """Compute once, of (3, H, W) RGB, what any number of vocabularies is scored on."""
        image = self.normalise(self.moved(image).float())
        return self.encode(self.options.windows.cut(image))

    def segment(
        self, features: ViewFeatures, size: tuple[int, int], text_TD: Tensor | None = None
    ) -> Tensor:
        """Score the features of a picture for classes: (T, height, width) in [0, 1].

        ``text_TD`` of None takes the model's present classes.
        """
        text_TD = self.class_embeddings() if text_TD is None else text_TD.to(self.device)
        views = (self._score_view(features[number], text_TD) for number in range(len(features)))
        # Not len, of which torch.export makes a constant.
        if text_TD.shape[0] <= self.aggregator.longest_list(self.options.shortlist):
            # One view at a time: a decoder's map of every class is what takes memory.
            return self._join((logits for logits, _ in views), size)
        listed = [(logits, chosen) for logits, chosen in views if chosen is not None]
        # Only classes on the list of a view are enlarged: there may be hundreds of others.
        union = torch.cat([chosen for _, chosen in listed], dim=1).unique()
        placed = (place_listed(x, torch.searchsorted(union, c), len(union)) for x, c in listed)
        scores = self._join(placed, size)
        return scores.new_zeros((len(text_TD), *size)).index_copy(0, union, scores)

    def _score_view(self, view: ViewFeatures, text_TD: Tensor) -> tuple[Tensor, Tensor | None]:
        """(1, L, 4h, 4w) logits of one view, and the (1, L) numbers of the classes if not all."""
        return self.aggregator.score_likeliest(
            view.dense, view.guides, text_TD, shortlist=self.options.shortlist, pooling=1
        )

    def _join(self, views: Iterable[Tensor], size: tuple[int, int]) -> Tensor:
        """(L, *size) scores of a picture from the (1, L, 4h, 4w) logits of its views."""
        side = (self.options.windows.window_size,) * 2
        enlarged = (
            F.interpolate(logits.float(), side, mode="bilinear", align_corners=False)[0]
            for logits in views
        )
        joined = self.options.windows.join(scores.sigmoid() for scores in enlarged)
        resized: Tensor = sem_seg_postprocess(joined, tuple(joined.shape[-2:]), *size)
        return resized

    def class_embeddings(self) -> Tensor:
        """Embed the present classes, (T, D), with gradient where the text learns."""
        if self.words is None:
            return self.classifier.embeddings_KD
        if self.training:
            embedded: Tensor = self.words()
            return embedded
        if torch.equal(self.classifier.embeddings_KD, self.own_TD):
            # The classes of training, which the tower may embed otherwise than before.
            base_mask = self.classifier.base_mask
            fresh = self.words.embed(self.words.vocabulary).embeddings_KD
            self.classifier.set_embeddings(fresh, base_mask, None)
            self.own_TD = self.classifier.embeddings_KD.clone()
        return self.classifier.embeddings_KD

    def embed_vocabulary(self, embeddings: TextEmbeddings) -> TextEmbeddings:
        """Embed classes by the model's own text tower, where it has one, for ``use_vocabulary``."""
        return embeddings if self.words is None else self.words.embed(embeddings.vocabulary)

    def _losses(self, items: list[Item]) -> dict[str, Tensor]:
        images: list[Tensor] = [item["image"] for item in items]  # type: ignore[misc]
        maps: list[Tensor] = [item["sem_seg"] for item in items]  # type: ignore[misc]
        size = tuple(max(image.shape[axis] for image in images) for axis in (-2, -1))
        pixels = torch.stack(
            [_pad(self.normalise(self.moved(image).float()), size, 0) for image in images]
        )
        for each in maps:
            # As they come: asking a GPU for a number would wait for it.
            check_labels(each, self.classifier.num_classes, _IGNORE_LABEL)
        labels = torch.stack([_pad(self.moved(m).long(), size, _IGNORE_LABEL) for m in maps])
        features = self.encode(pixels)
        text_TD = self.class_embeddings()
        base_B, base_T = self.classifier.base_numbers, self.classifier.base_mask
        if len(base_B) < len(base_T):
            # Novel classes have no labels: as classes of the loss they would be unlearned.
            text_TD, labels = text_TD[base_B], number_base(labels, base_T, _IGNORE_LABEL)
        logits = self.aggregator(features.dense, features.guides, text_TD)
        loss = pixel_class_loss(
            logits, labels, ignore_label=_IGNORE_LABEL, mask_ignored=self.options.mask_ignored
        )
        return {"loss_sem_seg": loss}


def build_aggregator(cfg: CfgNode, embed_dim: int) -> CostAggregator:
    """Build the aggregator of MODEL.CAT_SEG; every width is a share of DIM, as published."""
    options = cfg.MODEL.CAT_SEG
    dim = options.DIM
    sizes = AggregatorSizes(
        dim=dim,
        num_layers=options.NUM_LAYERS,
        window_size=options.ATTENTION_WINDOW,
        pooling=options.POOLING,
        list_length=options.PAD_LEN,
        appearance_dim=dim,
        text_dim=dim,
        decoder_dims=(dim // 2, dim // 4),
        guide_dims=(dim // 4, dim // 8),
    )
    return CostAggregator(embed_dim=embed_dim, guide_dims=(2 * dim, dim), sizes=sizes)


def _pad(tensor: Tensor, size: tuple[int, ...], value: float) -> Tensor:
    height, width = tensor.shape[-2:]
    return F.pad(tensor, (0, size[1] - width, 0, size[0] - height), value=value)


def _translate(module: CATSegmentor, state: dict[str, Tensor], prefix: str, *_: object) -> None:
    """Rename a published checkpoint in place."""
    if not prefix and is_published(state):
        renamed = rename_published(state, module.state_dict())
        state.clear()
        state.update(renamed)
