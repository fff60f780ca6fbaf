"""CLIP image towers: one embedding for a picture, or one for every cell.

Legend: N images, D joint embedding, C width, H W pixels, h w cells.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from clipself_d2.clip.fine_tuning import HeldRows, restrict_training
from clipself_d2.clip.precision import check_images
from clipself_d2.clip.towers.attention import Heads
from clipself_d2.clip.towers.dense_form import DENSE_FORMS, DenseForm, dense_form
from clipself_d2.clip.weights.form import Form

# Beginnings of the names of what stands behind the blocks, in open_clip's and timm's spelling.
_BEHIND_BLOCKS = (
    "visual.ln_post.",
    "visual.proj",
    "visual.attnpool.",
    "visual.head.",
    "visual.trunk.norm.",
    "visual.trunk.fc_norm.",
    "visual.trunk.attn_pool.",
    "visual.trunk.head.",
    "visual.dense_gate.",
)
# Number of trained blocks that stands for the whole tower.
ALL_BLOCKS = -1


@dataclass(frozen=True)
class DenseFeatures:
    """What ``VisionTower.forward_dense`` returns.

    Attributes:
        embedding: (N, D, h, w) float32, unit norm in every cell.
        blocks: Outputs of the blocks asked for, (N, C, h, w) float32, without the class token and
            before the final norm; C and the cell's side are ``block_channels`` and
            ``block_strides`` of the tower.
        lengths: (N, 1, h, w) float32, norms of the cells before they were normalised; None from
            towers without tokens.
        heads: Query, key and value of the patches in the last block as the form compares them,
            (N, A, h * w, E) each; None where the value alone is computed, or the trained block.
    """

    embedding: Tensor
    blocks: tuple[Tensor, ...]
    lengths: Tensor | None = None
    heads: Heads | None = None


class VisionTower(nn.Module, ABC):
    """A CLIP image tower with a dense map, of any input size; the contract of every family.

    Args:
        visual: open_clip's image tower; its parameters keep open_clip's names ``visual.*``.
        name: Model name as open_clip knows it.
        pixel_mean: RGB mean of the pixels, 0 to 255.
        pixel_std: RGB deviation of the pixels.
        precision: fp32, bf16, fp16 or auto.

    Raises:
        ValueError: If the tower has no dense map.

    Attributes:
        embed_dim: Width D of the joint embedding.
        patch_size: Pixels per cell of the dense map.
        image_size: Side of the native input, px.
        width: Width C of the last block's output.
        num_blocks: Number of blocks with outputs: a transformer's blocks, the blocks of a
            ConvNeXt's last stage, the stages of a ResNet.
        path: How a cell becomes an embedding, in words.
        checkpointing: Whether the dense path recomputes each block in the backward pass instead of
            keeping its activations.
        dense_form: Form of the dense path where ``forward_dense`` is not told.
        trained_parts: What of those blocks is trained.
        held_rows: Rows of trained parameters that stay as they are, as of ``restrict_training``.
        trained_form: Form that the file of the weights tells, where it does.
        any_form: Whether weights of another form may be loaded.
        trained_blocks: What ``freeze`` was last told; ``ALL_BLOCKS`` before.
        drop_path: Probability of stochastic depth in the last block, as ``set_drop_path`` set it.
        region_grid: Cells a side to which ``region_map`` is pooled for one region.
    """

    embed_dim: int
    patch_size: int
    image_size: int
    width: int
    num_blocks: int
    path: str
    checkpointing: bool = False
    dense_form: DenseForm = DENSE_FORMS["clipself"]
    trained_parts: str = "all"
    held_rows: HeldRows | tuple[()] = ()
    trained_form: Form | None = None
    any_form: bool = False
    trained_blocks: int = ALL_BLOCKS
    drop_path: float = 0.0
    region_grid: int = 1

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
        """Check open_clip's tower and read its sizes; the constructor's last step."""

    @property
    @abstractmethod
    def block_modules(self) -> list[nn.Module]:
        """The blocks in order."""

    @property
    def block_channels(self) -> tuple[int, ...]:
        """Channels of each block's output."""
        return (self.width,) * self.num_blocks

    @property
    def block_strides(self) -> tuple[int, ...]:
        """Pixels per cell of each block's output."""
        return (self.patch_size,) * self.num_blocks

    @abstractmethod
    def outer_parameters(self) -> list[nn.Parameter]:
        """Parameters outside the blocks that may be trained; a ViT's projection is not one."""

    def idle_parameters(self) -> list[nn.Parameter]:
        """Parameters of the last block that its dense form never uses."""
        return []

    def idle_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Parameters of the last block with rows that its dense form gives no gradient."""
        return []

    @abstractmethod
    def forward_image(self, images: Tensor) -> Tensor:
        """Embed whole pictures.

        Args:
            images: (N, 3, H, W) normalised pixels of any size and floating type; positions are
                resized.

        Returns:
            (N, D) float32, not normalised.

        Raises:
            ValueError: If the images are anything else.
        """

    @abstractmethod
    def forward_dense(
        self, images: Tensor, blocks: Sequence[int] = (), form: DenseForm | str | None = None
    ) -> DenseFeatures:
        """Embed every cell.

        Args:
            images: (N, 3, H, W) normalised pixels of any size and floating type. Sides that are no
                multiple of the patch are padded with zeros at the right and the bottom.
            blocks: 0-based numbers of the blocks whose outputs are wanted.
            form: Form of the last block or its name; None: the tower's ``dense_form``.

        Returns:
            A map of ceil(H / patch) x ceil(W / patch) cells, and the blocks.

        Raises:
            ValueError: If the tower cannot have the form, a number in ``blocks`` is out of range,
                or the images are anything else.
        """

    def set_dense_form(self, form: DenseForm | str) -> None:
        """Choose the form of the dense path, or refuse it; ``freeze`` comes after."""
        self.dense_form = self.check_dense((), form)

    def set_attention(self, *, window_size: int = 0, global_blocks: Sequence[int] = ()) -> None:
        """Choose the attention of the dense path; ``forward_image`` stays global.

        Args:
            window_size: Side of a window in cells; 0: every block is global.
            global_blocks: 0-based numbers of the blocks that stay global; () takes the last of
                every quarter.

        Raises:
            ValueError: If a number is out of range or the tower's blocks have no attention.
        """
        if window_size or global_blocks:
            raise ValueError(
                f"{self.name} has no attention; leave window_size at 0, no global_blocks"
            )

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

    def region_map(self, images: Tensor) -> Tensor:
        """Compute the map from which regions are pooled by RoIAlign.

        Args:
            images: (N, 3, H, W) normalised pixels.

        Returns:
            (N, C, h, w) float32 with cells of ``region_stride`` px: the dense embedding of a ViT,
            the last stage but one of a ResNet.
        """
        return self.forward_dense(images).embedding

    @property
    def region_stride(self) -> int:
        """Pixels per cell of ``region_map``."""
        return self.patch_size

    def embed_pooled(self, pooled: Tensor) -> Tensor:
        """Embed regions pooled from ``region_map``.

        Args:
            pooled: (R, C, g, g) with g = ``region_grid``; R may be 0.

        Returns:
            (R, D) float32, not normalised.
        """
        return pooled.flatten(1)

    def embed_cells(self, region_map: Tensor) -> Tensor:
        """Embed every cell of the dense map from ``region_map``.

        Args:
            region_map: (N, C, h, w).

        Returns:
            (N, D, h, w) float32, unit norm.
        """
        return region_map

    def freeze(self, trained_blocks: int = 0, *, behind: bool = True, parts: str = "all") -> None:
        """Freeze all but the last blocks.

        What a loss on ``forward_dense`` in the tower's form never reaches is frozen too, so that
        every trainable parameter gets a gradient. A ViT's projection always stays frozen, since
        text embeddings live behind it.

        Args:
            trained_blocks: Number of last blocks that are trained; 0 freezes the whole tower,
                ``ALL_BLOCKS`` trains all of them and what stands before: patch embedding or stem,
                positions, first norm.
            behind: Whether the loss reads the embedding, so that what stands behind the blocks may
                learn: a ViT's final norm with ``ALL_BLOCKS``, a ResNet's attention pool with any
                trained block.

            parts: What of the blocks is trained: "all", "attention" or "query_value".

        Raises:
            ValueError: If the tower has fewer blocks, or no such parts.
        """
        if not ALL_BLOCKS <= trained_blocks <= self.num_blocks:
            raise ValueError(
                f"{trained_blocks} trainable blocks asked for, but {self.name} has "
                f"{self.num_blocks}; 0 trains none and {ALL_BLOCKS} the whole tower"
            )
        self.trained_blocks, self.trained_parts = trained_blocks, parts
        self.requires_grad_(False)
        whole = trained_blocks == ALL_BLOCKS
        first = 0 if whole else self.num_blocks - trained_blocks
        for block in self.block_modules[first:]:
            block.requires_grad_(True)
        if whole:
            hidden = {id(p) for p in self.parameters_behind()} if not behind else set()
            for parameter in self.outer_parameters():
                parameter.requires_grad_(id(parameter) not in hidden)
        for parameter in self.idle_parameters():
            parameter.requires_grad_(False)
        # Hooks of an earlier call look into their list: emptied, they do nothing.
        if isinstance(self.held_rows, list):
            self.held_rows.clear()
        self.held_rows = restrict_training(self, parts)

    def parameters_behind(self) -> list[nn.Parameter]:
        """Parameters behind the last block: final norm, pool, projection."""
        return [
            parameter
            for name, parameter in self.named_parameters()
            if name.startswith(_BEHIND_BLOCKS)
        ]

    def parameter_depths(self) -> dict[str, int]:
        """Number every parameter, by name, by its place in the tower.

        0 before the blocks (patch embedding, positions, first norm), i + 1 in block i,
        ``num_blocks`` + 1 behind the last (final norm, pool, projection).
        """
        depth = {
            id(parameter): number + 1
            for number, block in enumerate(self.block_modules)
            for parameter in block.parameters()
        }
        depth |= {id(parameter): self.num_blocks + 1 for parameter in self.parameters_behind()}
        # What is neither in a block nor behind them stands before.
        return {name: depth.get(id(p), 0) for name, p in self.named_parameters()}

    def no_weight_decay_names(self) -> set[str]:
        """Name vectors, norms and biases, which open_clip's training does not decay."""
        return {
            name
            for name, parameter in self.named_parameters()
            if parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias"))
        }

    def check_dense(self, blocks: Sequence[int], form: DenseForm | str | None) -> DenseForm:
        """Return the form, or raise unless ``forward_dense`` can do what is asked."""
        found = self.dense_form if form is None else dense_form(form)
        self.check_form(found)
        unknown = [number for number in blocks if not 0 <= number < self.num_blocks]
        if unknown:
            raise ValueError(f"{self.name} has blocks 0 to {self.num_blocks - 1}, not {unknown}")
        return found

    def check_form(self, form: DenseForm) -> None:
        """Raise a ValueError unless the tower can have a form; without attention there is one."""
        if str(form) not in ("clipself", "attention"):
            raise ValueError(
                f"the dense form {form} changes the attention of the last block, which {self.name} "
                "has not; its form is clipself"
            )

    def take(self, images: Tensor) -> Tensor:
        """Give pictures the tower's number type; a ValueError refuses what are none."""
        check_images(images, self.name)
        return self.cast(images)

    def cast(self, features: Tensor) -> Tensor:
        """Give pixels or features the number type of the tower's parameters."""
        return features.to(next(self.parameters()).dtype)

    def pad(self, images: Tensor) -> Tensor:
        """Check pictures, and pad them with zeros at the right and the bottom to whole cells."""
        images = self.take(images)
        height, width = images.shape[-2:]
        bottom, right = -height % self.patch_size, -width % self.patch_size
        return F.pad(images, (0, right, 0, bottom)) if bottom or right else images
