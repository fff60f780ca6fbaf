"""CLIP image towers: one embedding for a picture, or one for every cell.

Legend: N images, D joint embedding, C width, H W pixels, h w cells.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

LAST_BLOCKS = ("value", "attention")


@dataclass(frozen=True)
class DenseFeatures:
    """What ``VisionTower.forward_dense`` returns.

    Attributes:
        embedding: (N, D, h, w) float32, unit norm in every cell.
        blocks: Outputs of the blocks asked for, (N, C, h, w) float32, without the class token and
            before the final norm.
    """

    embedding: Tensor
    blocks: tuple[Tensor, ...]


class ImageTower(nn.Module, ABC):
    """What every CLIP image tower knows of itself.

    Args:
        visual: open_clip's image tower; its parameters keep open_clip's names ``visual.*``.
        name: Model name as open_clip knows it.
        pixel_mean: RGB mean of the pixels, 0 to 255.
        pixel_std: RGB deviation of the pixels.
        precision: fp32, bf16, fp16 or auto.

    Attributes:
        embed_dim: Width D of the joint embedding.
        patch_size: Pixels per cell of the dense map.
        image_size: Side of the native input, px.
    """

    embed_dim: int
    patch_size: int
    image_size: int

    def __init__(
        self,
        *,
        visual: nn.Module,
        name: str,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        precision: str = "fp32",
    ) -> None:
        super().__init__()
        self.visual = visual
        self.name = name
        self.pixel_mean, self.pixel_std = pixel_mean, pixel_std
        self.precision = precision
        self.read_visual()

    @abstractmethod
    def read_visual(self) -> None:
        """Check open_clip's tower and read its sizes; the constructor's last step.

        Raises:
            ValueError: If the tower has no dense map.
        """

    def freeze(self) -> None:
        """Freeze every parameter."""
        for parameter in self.parameters():
            parameter.requires_grad_(False)


class VisionTower(ImageTower):
    """A CLIP image tower with a dense map, of any input size.

    Arguments are those of ``ImageTower``.

    Raises:
        ValueError: If the tower has no dense map.

    Attributes:
        width: Width C of the blocks' outputs.
        num_blocks: Number of blocks with outputs on that map.
        path: How a cell becomes an embedding, in words.
        checkpointing: Whether the dense path recomputes each block in the backward pass instead of
            keeping its activations.
    """

    width: int
    num_blocks: int
    path: str
    checkpointing: bool = False

    @property
    @abstractmethod
    def transformer_blocks(self) -> nn.ModuleList | nn.Sequential:
        """The blocks in order."""

    @abstractmethod
    def outer_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the blocks that may be trained; the projection is not one."""

    @abstractmethod
    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last block that its value-only form never uses."""

    @abstractmethod
    def forward_image(self, images: Tensor) -> Tensor:
        """Embed whole pictures.

        Args:
            images: (N, 3, H, W) normalised pixels of any size; positions are resized.

        Returns:
            (N, D) float32, not normalised.
        """

    @abstractmethod
    def forward_dense(
        self, images: Tensor, blocks: Sequence[int] = (), last_block: str = "value"
    ) -> DenseFeatures:
        """Embed every cell.

        Args:
            images: (N, 3, H, W) normalised pixels of any size. Sides that are no multiple of the
                patch are padded with zeros at the right and the bottom.
            blocks: 0-based numbers of the blocks whose outputs are wanted.
            last_block: "value": identity attention in the last block, with its residuals and
                MLP; "attention": the block as it was trained.

        Returns:
            A map of ceil(H / patch) x ceil(W / patch) cells, and the blocks.

        Raises:
            ValueError: If ``last_block`` or a number in ``blocks`` is out of range.
        """

    @abstractmethod
    def set_attention(self, *, window_size: int = 0, global_blocks: Sequence[int] = ()) -> None:
        """Choose the attention of the dense path; ``forward_image`` stays global.

        Args:
            window_size: Side of a window in cells; 0: every block is global.
            global_blocks: 0-based numbers of the blocks that stay global; () takes the last of
                every quarter.

        Raises:
            ValueError: If a number is out of range or the tower has no attention.
        """

    def forward_regions(self, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Embed regions by copies of the class token; only towers that have one do.

        Args:
            images: (N, 3, H, W) normalised pixels.
            masks: One (Ki, h, w) bool tensor for each image.

        Returns:
            (R, D) float32, not normalised.

        Raises:
            ValueError: If the picture's embedding is not that of a class token.
        """
        raise ValueError(
            f"{self.name} does not read its embedding off a class token ({self.path}), so there "
            f"is no token to copy for {len(masks)} images; pool its dense map instead"
        )

    def unlock(self, num_blocks: int, everything: bool = False) -> None:
        """Choose what is trained through ``forward_dense`` with the value-only last block.

        Args:
            num_blocks: Number of last blocks to train.
            everything: Whether patch embedding, positions and outer norms are trained too. The
                projection stays frozen, since text embeddings live behind it.

        Raises:
            ValueError: If the tower has fewer blocks.
        """
        if not 0 <= num_blocks <= self.num_blocks:
            raise ValueError(
                f"{num_blocks} trainable blocks asked for, but {self.name} has {self.num_blocks}; "
                "lower TRAINABLE_BLOCKS"
            )
        self.freeze()
        for block in self.transformer_blocks[self.num_blocks - num_blocks :]:
            block.requires_grad_(True)
        if everything:
            for parameter in self.outer_parameters():
                parameter.requires_grad_(True)
        for parameter in self.idle_parameters():
            parameter.requires_grad_(False)

    def no_weight_decay_names(self) -> set[str]:
        """Name the parameters without weight decay: vectors, norms, biases.

        Returns:
            Names as in ``named_parameters``.

        Reference: the grouping of open_clip's training, as CLIPSelf uses it.
        """
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias"))
        }

    def check_dense(self, blocks: Sequence[int], last_block: str) -> None:
        """Raise unless ``forward_dense`` can do what is asked.

        Args:
            blocks: 0-based numbers of blocks.
            last_block: Name of the last block's form.

        Raises:
            ValueError: If one is out of range.
        """
        if last_block not in LAST_BLOCKS:
            raise ValueError(f"last_block is {last_block!r}, not one of {LAST_BLOCKS}")
        unknown = [number for number in blocks if not 0 <= number < self.num_blocks]
        if unknown:
            raise ValueError(f"{self.name} has blocks 0 to {self.num_blocks - 1}, not {unknown}")

    def pad(self, images: Tensor) -> Tensor:
        """Pad pictures with zeros at the right and the bottom to whole cells.

        Args:
            images: (N, 3, H, W).

        Returns:
            The same where both sides are multiples of the patch.
        """
        height, width = images.shape[-2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images


def native_grid(num_patches: int, name: str) -> tuple[int, int]:
    """Side of a square position table.

    Args:
        num_patches: Rows of the table without the class token.
        name: Model name for the message.

    Returns:
        Grid (h, w).

    Raises:
        ValueError: If the table is not square.
    """
    side = math.isqrt(num_patches)
    if side * side != num_patches:
        raise ValueError(f"{name} has {num_patches} positions, which is not a square grid")
    return side, side
