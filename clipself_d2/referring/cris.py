"""CRIS: segmentation of what a sentence refers to.

Legend: N pairs of image and sentence, S side of the letterboxed image, H W of the original, px,
T tokens, D joint embedding.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor, nn

from clipself_d2.clip import TextEncoder
from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.data.items import check_items
from clipself_d2.layers.letterbox import restore_map
from clipself_d2.parts.image_tower import build_image_tower, load_whole_clip
from clipself_d2.parts.pixels import PixelModel
from clipself_d2.referring.decoder import CrisDecoder
from clipself_d2.referring.encoder import ResNetLevels, ViTLevels, ViTResampling
from clipself_d2.referring.losses import text_to_pixel_contrastive_loss
from clipself_d2.referring.neck import CrisNeck
from clipself_d2.referring.norms import norm_maker
from clipself_d2.referring.projector import CrisProjector

Item = dict[str, object]

# Over a ViT, which is not of the paper, pixels start with the share that small objects have.
_VIT_PRIOR = 0.03


class CRIS(PixelModel):
    """Image and text tower of a CLIP, neck, decoder and projector.

    Args:
        backbone: ``ResNetLevels`` or ``ViTLevels``.
        text: CLIP's text tower; one that ``reads_end_token``.
        resampling: Brings the backbone's maps to the grids of the neck; an identity for a ResNet.
        neck: Fuses levels and sentence.
        decoder: Lets cells read the words; None leaves it out, the paper's ablation.
        projector: Scores pixels by the sentence.
        pixel_mean: RGB mean, 0 to 255.
        pixel_std: RGB deviation.
        word_length: T, start and end included.
        mask_threshold: Probability above which a pixel is in the mask.

    Reference: Wang et al., CRIS, arXiv 2111.15174. Differs from the released code: an image that
    comes with several sentences is encoded once; image and text towers keep their learning rate
    from the first iteration on.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: ResNetLevels | ViTLevels,
        text: TextEncoder,
        resampling: nn.Module,
        neck: CrisNeck,
        decoder: CrisDecoder | None,
        projector: CrisProjector,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        word_length: int,
        mask_threshold: float = 0.35,
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        if not 3 <= word_length <= text.context_length:
            raise ValueError(
                f"MODEL.CRIS.WORD_LEN is {word_length}; the text tower reads 3 to "
                f"{text.context_length} tokens, start and end included"
            )
        self.backbone = backbone
        self.text = text
        self.resampling = resampling
        self.neck = neck
        self.decoder = decoder
        self.proj = projector
        self.word_length = word_length
        self.mask_threshold = mask_threshold

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.CRIS and the pixel statistics."""
        cris = cfg.MODEL.CRIS
        if cris.NORM == "SyncBN" and cfg.MODEL.DEVICE == "cpu" and comm.get_world_size() > 1:
            raise ValueError(
                "MODEL.CRIS.NORM is SyncBN, which several processes share on GPUs alone; set it to "
                "GN or BN, or run one process"
            )
        backbone, text = build_encoders(cfg)
        over_vit = isinstance(backbone, ViTLevels)
        make_norm, dim, state_dim = norm_maker(cris.NORM), cris.FPN_OUT[1], text.embed_dim
        return {
            "backbone": backbone,
            "text": text,
            # New weights, so no part of the backbone: they learn at the full rate.
            "resampling": ViTResampling(backbone.channels[0]) if over_vit else nn.Identity(),
            "neck": CrisNeck(
                in_dims=backbone.channels,
                state_dim=state_dim,
                out_dims=cris.FPN_OUT,
                make_norm=make_norm,
                shares_space=over_vit,
            ),
            "decoder": build_decoder(cfg, text.word_dim) if cris.NUM_LAYERS else None,
            "projector": CrisProjector(
                dim=dim,
                state_dim=state_dim,
                kernel_size=cris.KERNEL_SIZE,
                make_norm=make_norm,
                normalize_state=over_vit,
                prior=_VIT_PRIOR if over_vit else None,
            ),
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "word_length": cris.WORD_LEN,
        }

    def forward(self, batched_inputs: list[Item]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Learn from pairs, or segment.

        Args:
            batched_inputs: Items of ``ReferringMapper``: ``image`` (3, S, S) RGB, 0 to 255, on a
                letterboxed canvas; ``sentence``; in training ``ref_mask`` (S, S) in [0, 1];
                otherwise ``height`` and ``width`` of the original, px. Items with the same image
                tensor, or the same ``file_name``, share its features when segmenting.

        Returns:
            In training ``{"loss_ref": scalar}``. Otherwise a dict for each item:
            ``ref_mask_prob`` (H, W) float32 and ``ref_mask`` (H, W) bool, on the CPU.

        Raises:
            ValueError: If images are of different or unfit sizes, or without sentences.
        """
        check_items(batched_inputs, ("sentence",), self, "tools/train_net.py of this project")
        sentences = [str(item["sentence"]) for item in batched_inputs]
        if self.training:
            pixels = self.preprocess_images([item["image"] for item in batched_inputs])  # type: ignore[misc]
            logits = self.score(pixels, sentences)
            masks = [self.moved(item["ref_mask"]) for item in batched_inputs]  # type: ignore[arg-type]
            target = torch.stack(masks)[:, None]
            return {"loss_ref": text_to_pixel_contrastive_loss(logits, target)}
        images, owners = _distinct_images(batched_inputs)
        pixels = self.preprocess_images(images)
        logits = self.score(pixels, sentences, torch.tensor(owners, device=self.device))
        probabilities = F.interpolate(
            logits.float().sigmoid(), pixels.shape[-2:], mode="bicubic", align_corners=True
        )
        return [
            self._postprocess(probability[0], item)
            for probability, item in zip(probabilities.detach().cpu(), batched_inputs, strict=True)
        ]

    def score(
        self, pixels: Tensor, sentences: Sequence[str], owners: Tensor | None = None
    ) -> Tensor:
        """Score every pixel for every of N sentences: (N, 1, s, s) logits.

        Pixels are (M, 3, S, S), normalised; ``owners`` (N,) is the number of each sentence's image,
        None where all have their own. s is two stages finer than the middle level: S / 4 for a
        ResNet.
        """
        levels = self.resampling(self.backbone(pixels))
        if owners is not None:
            levels = tuple(level[owners] for level in levels)
        tokens = self.moved(self.text.tokenize(sentences, self.word_length))
        words, state = self.text.word_features(tokens)
        fused = self.neck(levels, state)
        if self.decoder is not None:
            # The end token has the largest number; what follows it is padding.
            places = torch.arange(tokens.shape[1], device=self.device)
            fused = self.decoder(fused, words, places > tokens.argmax(dim=1, keepdim=True))
        logits: Tensor = self.proj(fused, state)
        return logits

    def preprocess_images(self, images: Sequence[Tensor]) -> Tensor:
        """Stack (3, S, S) each, 0 to 255, and normalise on the model's device.

        A ValueError says that sizes differ or are no multiples of ``backbone.divisor``.
        """
        sizes = {tuple(image.shape[-2:]) for image in images}
        divisor = self.backbone.divisor
        if len(sizes) != 1 or any(side % divisor for size in sizes for side in size):
            raise ValueError(
                f"images are of the sizes {sorted(sizes)}, expected one size of multiples of "
                f"{divisor} px; change INPUT.REFER_SIZE"
            )
        batch = torch.stack([self.moved(image) for image in images]).float()
        return self.normalise(batch)

    def _postprocess(self, probability: Tensor, item: Item) -> dict[str, Tensor]:
        height, width = int(item["height"]), int(item["width"])  # type: ignore[call-overload]
        restored = torch.from_numpy(restore_map(probability.numpy(), height, width))
        return {"ref_mask_prob": restored, "ref_mask": restored > self.mask_threshold}


def build_encoders(cfg: CfgNode) -> tuple[ResNetLevels | ViTLevels, TextEncoder]:
    """Build both towers of MODEL.CLIP: a source of levels, and a text tower.

    MODEL.CLIP.WEIGHTS replaces the image tower of PRETRAINED. A ValueError says that words and
    padding of the text tower cannot be told apart by its end token.
    """
    clip = load_whole_clip(cfg)
    if not clip.text.reads_end_token:
        raise ValueError(
            f"the text tower of {clip.name} is not causal or not read at an end token of the "
            "largest number, so CRIS cannot tell its words from padding; set MODEL.CLIP.NAME to a "
            "CLIP whose text tower is, such as RN50-quickgelu or ViT-B-16-quickgelu"
        )
    tower = build_image_tower(
        cfg,
        original=clip.tower,
        reads_embedding=True,
        used=("TAP_BLOCKS", "TEXT_TRAINABLE_BLOCKS"),
    )
    if isinstance(tower, ResNetTower):
        return ResNetLevels(tower=tower, norm=cfg.MODEL.CRIS.NORM), clip.text
    return ViTLevels(tower=tower, tap_blocks=cfg.MODEL.CLIP.TAP_BLOCKS), clip.text


def build_decoder(cfg: CfgNode, word_dim: int) -> CrisDecoder:
    """Build the decoder of MODEL.CRIS, as wide as the neck's output."""
    cris = cfg.MODEL.CRIS
    dim = cris.FPN_OUT[1]
    return CrisDecoder(
        num_layers=cris.NUM_LAYERS,
        dim=dim,
        # Eight as published, of 64 channels; a narrow decoder's keep 16.
        num_heads=min(8, max(1, dim // 16)),
        ffn_dim=cris.DIM_FFN,
        dropout=cris.DROPOUT,
        word_dim=word_dim,
    )


def _distinct_images(items: Sequence[Item]) -> tuple[list[Tensor], list[int]]:
    """Return each image once, and for every item the number of its image."""
    images: list[Tensor] = []
    numbers: dict[object, int] = {}
    owners = []
    for item in items:
        key = item.get("file_name") or id(item["image"])
        if key not in numbers:
            numbers[key] = len(images)
            images.append(item["image"])  # type: ignore[arg-type]
        owners.append(numbers[key])
    return images, owners
