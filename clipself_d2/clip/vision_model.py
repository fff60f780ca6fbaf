"""Vision foundation models of timm as frozen teachers of patch features: DINOv2, DINO, SAM.

Legend: N images, C channels, H W pixels, h w grid.
"""

from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

# What they were trained on, 0 to 255: ImageNet's statistics.
_MEAN, _STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
# Our names: timm's name and pretrained tag, and what is built otherwise. ``tiny`` has no weights:
# a small ViT for tests and the embedded world. Its layer scale is 1, not timm's 1e-5, with which
# random blocks change nothing.
VISION_MODELS: dict[str, tuple[str, dict[str, object]]] = {
    "dinov2_s": ("vit_small_patch14_reg4_dinov2.lvd142m", {}),
    "dinov2_b": ("vit_base_patch14_reg4_dinov2.lvd142m", {}),
    "dinov2_l": ("vit_large_patch14_reg4_dinov2.lvd142m", {}),
    "dino_b16": ("vit_base_patch16_224.dino", {}),
    "dino_b8": ("vit_base_patch8_224.dino", {}),
    "sam_b": ("samvit_base_patch16.sa1b", {}),
    "sam_l": ("samvit_large_patch16.sa1b", {}),
    "tiny": (
        "vit_small_patch14_reg4_dinov2",
        {"patch_size": 8, "img_size": 64, "embed_dim": 96, "depth": 3, "num_heads": 3}
        | {"init_values": 1.0},
    ),
}


class VisionModel(nn.Module):
    """A frozen ViT of timm that gives one feature a patch.

    Args:
        name: A name of ``VISION_MODELS``, or timm's own.
        weights: "pretrained" (timm fetches them), a file of timm's or of Meta's layout, or empty
            for random weights, the same at every start.
        overrides: Arguments of timm's constructor that replace the defaults.

    Attributes:
        patch_size: Pixels of a patch.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If timm knows no such model.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, name: str, weights: str = "", **overrides: object) -> None:
        super().__init__()
        timm_name, options = VISION_MODELS.get(name, (name, {}))
        if not timm.is_model(timm_name.split(".")[0]):
            raise ValueError(
                f"no vision model {name!r} is in timm nor among {tuple(VISION_MODELS)}"
            )
        options = {**options, **overrides}
        if not timm_name.startswith("samvit"):
            options.update(dynamic_img_size=True)
        if weights and weights != "pretrained":
            file = Path(weights).expanduser()
            if not file.is_file():
                raise FileNotFoundError(f"there is no file {weights} for the vision model {name}")
            options["pretrained_cfg_overlay"] = {"file": str(file)}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.model = timm.create_model(
                timm_name, pretrained=bool(weights), num_classes=0, **options
            )
        self.model.eval().requires_grad_(False)
        self.patch_size = int(self.model.patch_embed.patch_size[0])
        for key, values in (("mean", _MEAN), ("std", _STD)):
            self.register_buffer(key, torch.tensor(values).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> "VisionModel":
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)

    @torch.no_grad()
    def forward(self, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
        """Compute the features of every cell, behind the final norm.

        Args:
            pixels: (N, 3, H, W) RGB, 0 to 255, of any size; resized to ``patch_size`` times the
                grid, so that the model's patches are the cells.
            grid: Grid (h, w) of the student.

        Returns:
            (N, C, h, w) float32. Models of one size alone (SAM) get their own grid and are resized
            to the student's.
        """
        normalised = (pixels.float() - self.mean) / self.std
        # Models that take any size have been built with the option of that name.
        sam = not hasattr(self.model, "dynamic_img_size")
        size = self.model.patch_embed.img_size if sam else tuple(self.patch_size * s for s in grid)
        picture = F.interpolate(normalised, size=size, mode="bilinear", antialias=True)
        # timm's intermediate features come without the final norm unless it is asked for.
        options = {} if sam else {"norm": True}
        features: Tensor = self.model.forward_intermediates(
            picture, indices=1, output_fmt="NCHW", intermediates_only=not sam, **options
        )[0]
        if features.shape[-2:] != grid:
            features = F.interpolate(features.float(), size=grid, mode="bilinear")
        return features.float()
