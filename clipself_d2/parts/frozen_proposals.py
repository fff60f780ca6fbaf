"""A trained proposal network that stays as it is while others learn on its boxes.

Legend: N images, R proposals.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_backbone, build_proposal_generator
from detectron2.structures import ImageList, Instances
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

from clipself_d2.clip.randomness import own_randomness
from clipself_d2.parts.checkpointer import SafeCheckpointer
from clipself_d2.parts.config_files import merge_config_file
from clipself_d2.parts.pixels import PixelModel
from clipself_d2.parts.words import shortened

# What a detector's checkpoint has beside its proposal network.
_BESIDE = ("roi_heads.", "pixel_mean", "pixel_std", "proposal_generator.anchor_generator.")


class FrozenProposals(PixelModel):
    """Backbone and proposal generator in evaluation mode, with pixels of their own.

    Args:
        backbone: Its backbone.
        proposal_generator: Its RPN, of the form of Detectron2's.
        pixel_mean: Mean of the three channels, 0 to 255, in the order of ``image_format``.
        pixel_std: Their deviation.
        image_format: RGB or BGR.

    Reference: the offline RPN of RegionCLIP, arXiv 2112.09106, section 4.1.
    """

    def __init__(
        self,
        *,
        backbone: nn.Module,
        proposal_generator: nn.Module,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        image_format: str = "BGR",
    ) -> None:
        super().__init__(pixel_mean=pixel_mean, pixel_std=pixel_std)
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.image_format = image_format
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "FrozenProposals":
        """Stay in evaluation mode."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> list[Instances]:
        """Propose ``proposal_boxes`` (XYXY px) with ``objectness_logits``, best first.

        Images are N pictures (3, Hi, Wi), RGB, 0 to 255, each of its own size.
        """
        pixels = [self.moved(image).float() for image in images]
        if self.image_format == "BGR":
            pixels = [picture.flip(0) for picture in pixels]
        batch = ImageList.from_tensors(
            [self.normalise(picture) for picture in pixels],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        found, _ = self.proposal_generator(batch, self.backbone(batch.tensor), None)
        return list(found)


@own_randomness()
def build_frozen_proposals(cfg: CfgNode) -> FrozenProposals:
    """Build the network of MODEL.FROZEN_RPN.CONFIG, filled from WEIGHTS where given.

    It is random without WEIGHTS, for MODEL.WEIGHTS to fill. A FileNotFoundError or ValueError says
    that a file is missing, the config unknown, or the weights are of another network.
    """
    own = _read_config(cfg)
    backbone = build_backbone(own)
    generator = build_proposal_generator(own, backbone.output_shape())
    if generator is None:
        raise ValueError(
            f"MODEL.FROZEN_RPN.CONFIG {cfg.MODEL.FROZEN_RPN.CONFIG} has no proposal network; its "
            "MODEL.PROPOSAL_GENERATOR.NAME must be RPN"
        )
    network = FrozenProposals(
        backbone=backbone,
        proposal_generator=generator,
        pixel_mean=own.MODEL.PIXEL_MEAN,
        pixel_std=own.MODEL.PIXEL_STD,
        image_format=own.INPUT.FORMAT,
    )
    weights = cfg.MODEL.FROZEN_RPN.WEIGHTS
    if weights:
        if "://" not in weights and not Path(weights).is_file():
            raise FileNotFoundError(f"MODEL.FROZEN_RPN.WEIGHTS {weights} does not exist")
        _StrictLoader(network).load(weights)
    return network


class _StrictLoader(SafeCheckpointer):
    """Refuses a checkpoint that leaves a part of the network random, or has parts unknown to it."""

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        foreign = [key for key in incompatible.unexpected_keys if not key.startswith(_BESIDE)]
        found = {
            "of another shape": [name for name, *_ in incompatible.incorrect_shapes],
            "missing": list(incompatible.missing_keys),
            "unknown": foreign,
        }
        wrong = [f"{title}: {shortened(keys, 3)}" for title, keys in found.items() if keys]
        if wrong:
            reason = "; ".join(wrong)
            raise ValueError(f"MODEL.FROZEN_RPN.WEIGHTS does not fit the network: {reason}")


def _read_config(cfg: CfgNode) -> CfgNode:
    """The network's config: its file on Detectron2's defaults, whatever the run's config says."""
    path = cfg.MODEL.FROZEN_RPN.CONFIG
    if not path:
        raise ValueError(
            "a frozen proposal network needs MODEL.FROZEN_RPN.CONFIG, the config of a trained "
            "one, and WEIGHTS, unless a detector's MODEL.WEIGHTS holds it"
        )
    if not Path(path).is_file():
        raise FileNotFoundError(f"MODEL.FROZEN_RPN.CONFIG {path} does not exist")
    own = get_cfg()
    # Unless its own config says otherwise, the network stands on the run's CLIP.
    for part in ("CLIP", "CLIP_FPN"):
        own.MODEL[part] = cfg.MODEL[part].clone()
        own.MODEL[part].defrost()
    try:
        merge_config_file(own, path)
    except (KeyError, AssertionError) as error:
        reason = error.args[0] if error.args else error
        raise ValueError(f"{reason} in MODEL.FROZEN_RPN.CONFIG {path}") from error
    # Its checkpoint brings a tower with it.
    own.MODEL.CLIP.WEIGHTS = ""
    own.MODEL.DEVICE = cfg.MODEL.DEVICE
    own.freeze()
    return own
