"""A trained proposal network as a frozen source of regions.

Legend: N images, R proposals.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.structures import ImageList
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import Tensor, nn

_PARTS = ("backbone", "proposal_generator")


class _RPNCheckpointer(DetectionCheckpointer):
    """Refuses a checkpoint that leaves a part of the proposal network random."""

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        wrong = [name for name, *_ in incompatible.incorrect_shapes]
        wrong += [name for name in incompatible.missing_keys if name.startswith(_PARTS)]
        if wrong:
            raise ValueError(
                f"MODEL.REGIONCLIP.RPN_WEIGHTS lacks {wrong[0]} in the shape that RPN_CONFIG asks "
                f"for, and {len(wrong) - 1} more; they must be of one network"
            )


class OfflineRPN(nn.Module):
    """Backbone and proposal generator of a detector, frozen and always in evaluation mode.

    Args:
        detector: Detectron2's ProposalNetwork or GeneralizedRCNN, or a kin with ``backbone``,
            ``proposal_generator``, ``pixel_mean`` and ``pixel_std``.
        rgb: Whether it reads RGB, instead of Detectron2's BGR.

    Raises:
        ValueError: If the detector lacks a part.

    Reference: the offline RPN of RegionCLIP, arXiv 2112.09106, section 4.1.
    """

    backbone: Any
    proposal_generator: Any
    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, *, detector: Any, rgb: bool) -> None:
        super().__init__()
        missing = [part for part in _PARTS if getattr(detector, part, None) is None]
        if missing:
            raise ValueError(
                f"{type(detector).__name__} has no {' and no '.join(missing)}; "
                "MODEL.REGIONCLIP.RPN_CONFIG must be of a proposal network or a detector"
            )
        self.backbone = detector.backbone
        self.proposal_generator = detector.proposal_generator
        self.register_buffer("pixel_mean", detector.pixel_mean, persistent=False)
        self.register_buffer("pixel_std", detector.pixel_std, persistent=False)
        self.rgb = rgb
        self.requires_grad_(False)
        self.train(False)

    def train(self, mode: bool = True) -> "OfflineRPN":
        """Stay in evaluation mode.

        Args:
            mode: Ignored.

        Returns:
            Self.
        """
        return super().train(False)

    @torch.no_grad()
    def forward(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Propose regions.

        Args:
            images: N pictures (3, Hi, Wi) of uint8, RGB.

        Returns:
            N tensors (Ri, 4) of XYXY px, best first.
        """
        pixels = [image.to(self.pixel_mean.device).float() for image in images]
        if not self.rgb:
            pixels = [picture.flip(0) for picture in pixels]
        batch = ImageList.from_tensors(
            [(picture - self.pixel_mean) / self.pixel_std for picture in pixels],
            self.backbone.size_divisibility,
            padding_constraints=self.backbone.padding_constraints,
        )
        proposals, _ = self.proposal_generator(batch, self.backbone(batch.tensor), None)
        return [found.proposal_boxes.tensor for found in proposals]


def load_offline_rpn(cfg: CfgNode, config_file: str, weights: str) -> OfflineRPN:
    """Build and fill a proposal network from its own config and checkpoint.

    Args:
        cfg: The config of the run; keys of this plugin that ``config_file`` leaves open are taken
            from it, those of Detectron2 are Detectron2's defaults.
        config_file: yaml of the proposal network or of a detector, or the ``config.yaml`` in the
            folder of its training.
        weights: Its checkpoint, or an address that Detectron2 downloads.

    Returns:
        The network.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If the config has unknown keys, or the checkpoint is of another network.
    """
    if not config_file or not weights:
        raise ValueError(
            "MODEL.DISTILL.REGIONS rpn needs MODEL.REGIONCLIP.RPN_CONFIG and RPN_WEIGHTS, the "
            "config and the checkpoint of a trained proposal network"
        )
    if not Path(config_file).is_file():
        raise FileNotFoundError(f"MODEL.REGIONCLIP.RPN_CONFIG {config_file} does not exist")
    if "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"MODEL.REGIONCLIP.RPN_WEIGHTS {weights} does not exist")
    own = read_rpn_config(cfg, config_file)
    detector = build_model(own)
    _RPNCheckpointer(detector).load(weights)
    return OfflineRPN(detector=detector, rgb=own.INPUT.FORMAT == "RGB")


def read_rpn_config(cfg: CfgNode, config_file: str) -> CfgNode:
    """Read a config on Detectron2's defaults, whatever the run's config says.

    Args:
        cfg: The config of the run, for the keys of this plugin and the device.
        config_file: yaml file.

    Returns:
        The whole config of the proposal network, frozen.

    Raises:
        ValueError: If the file has an unknown key.
    """
    own = get_cfg()
    _add_missing(own, cfg)
    own.MODEL.CLIP.WEIGHTS = ""
    try:
        own.merge_from_file(config_file)
    except (KeyError, AssertionError) as error:
        reason = error.args[0] if error.args else error
        raise ValueError(f"{reason} in MODEL.REGIONCLIP.RPN_CONFIG {config_file}") from error
    # The checkpoint brings the tower with it.
    own.MODEL.CLIP.WEIGHTS = ""
    own.MODEL.DEVICE = cfg.MODEL.DEVICE
    own.freeze()
    return own


def _add_missing(target: CfgNode, source: CfgNode) -> None:
    for key, value in source.items():
        if key not in target:
            target[key] = value.clone() if isinstance(value, CfgNode) else value
        elif isinstance(value, CfgNode):
            _add_missing(target[key], value)
    target.defrost()
