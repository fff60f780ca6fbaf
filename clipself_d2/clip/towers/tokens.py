"""What all transformer towers share: the two forward passes over a sequence of tokens.

Legend: N images, D joint embedding, C width, H W pixels, h w patch grid, T tokens (class token
first, where there is one), R regions of the batch.
"""

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from clipself_d2.clip.precision import compute_context
from clipself_d2.clip.towers.attention import (
    AttentionPlan,
    Heads,
    global_attention,
    masked_attention,
    merge_heads,
    quarter_blocks,
    window_attention,
)
from clipself_d2.clip.towers.contract import DenseFeatures, VisionTower

Grid = tuple[int, int]


class TokenTower(VisionTower):
    """A tower whose blocks are transformer blocks, each split into heads, value and the rest.

    Attributes:
        num_prefix: Number of tokens before the patches: 1 with a class token, else 0.
        reads_class_token: Whether the picture's embedding is the class token's.
        attention: Which block of the dense path uses which attention.
    """

    num_prefix: int
    reads_class_token: bool
    attention = AttentionPlan()

    @abstractmethod
    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Turn pixels into tokens.

        Args:
            images: (N, 3, H, W) with H and W multiples of the patch.

        Returns:
            (N, T, C) tokens with positions, and the rotary table (h * w, 2E) of trunks that rotate.
        """

    @abstractmethod
    def heads(self, block: nn.Module, tokens: Tensor, rotary: Tensor | None) -> Heads:
        """Query, key and value of a block.

        Args:
            block: One of ``block_modules``.
            tokens: (N, T, C), input of the block.
            rotary: Rotary table of the patches; None rotates nothing.

        Returns:
            (N, A, T, E) each.
        """

    @abstractmethod
    def value(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Value of a block alone, heads side by side; (N, T, C) to (N, T, A * E)."""

    @abstractmethod
    def finish(self, block: nn.Module, tokens: Tensor, mixed: Tensor) -> Tensor:
        """The rest of a block: output projection, residuals and MLP.

        Args:
            block: One of ``block_modules``.
            tokens: (N, T, C), input of the block.
            mixed: (N, T, A * E), values mixed by attention.

        Returns:
            (N, T, C).
        """

    @abstractmethod
    def project(self, tokens: Tensor) -> Tensor:
        """Embed each token by itself; (N, ..., C) to (N, ..., D).

        For one token alone this is ``pool``: where the tower averages, the mean of one; where it
        pools by attention, that attention over one token, which passes the token's value.
        """

    @abstractmethod
    def pool(self, tokens: Tensor) -> Tensor:
        """Embed the picture from the last block's tokens; (N, T, C) to (N, D)."""

    def run_block(self, block: nn.Module, tokens: Tensor, rotary: Tensor | None) -> Tensor:
        """Apply a block with its global self-attention; (N, T, C) to (N, T, C)."""
        mixed = global_attention(self.heads(block, tokens, rotary))
        return self.finish(block, tokens, merge_heads(mixed))

    def run_window_block(
        self, block: nn.Module, tokens: Tensor, rotary: Tensor | None, grid: Grid
    ) -> Tensor:
        """Apply a block with attention in windows; (N, T, C) to (N, T, C)."""
        mixed = window_attention(
            self.heads(block, tokens, rotary),
            grid=grid,
            window_size=self.attention.window_size,
            num_prefix=self.num_prefix,
        )
        return self.finish(block, tokens, merge_heads(mixed))

    def run_value_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Apply a block in which every token attends to itself alone; (N, T, C) to (N, T, C)."""
        return self.finish(block, tokens, self.value(block, tokens))

    def run_class_residual_block(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Apply a block of values alone to the class token beside each; (N, T, C) to (N, T, C).

        Reference: the released code of CAT-Seg, arXiv 2303.11797.
        """
        return self.finish(block, tokens[:, :1].expand_as(tokens), self.value(block, tokens))

    def set_attention(self, *, window_size: int = 0, global_blocks: Sequence[int] = ()) -> None:
        """Choose the attention of the dense path; ``forward_image`` stays global.

        Args:
            window_size: Side of a window in cells; 0: every block is global.
            global_blocks: 0-based numbers of the blocks that stay global; () takes the last of
                every quarter. The value-only last block has no attention, whatever is said here.

        Raises:
            ValueError: If the size is negative or a number out of range.
        """
        if window_size < 0:
            raise ValueError(
                f"window_size is {window_size}; it is a number of cells, or 0 for global attention"
            )
        unknown = [number for number in global_blocks if not 0 <= number < self.num_blocks]
        if unknown:
            raise ValueError(
                f"{self.name} has blocks 0 to {self.num_blocks - 1}, not {unknown} of global_blocks"
            )
        chosen = tuple(global_blocks) or quarter_blocks(self.num_blocks)
        self.attention = AttentionPlan(window_size, chosen if window_size else ())

    def forward_image(self, images: Tensor) -> Tensor:
        """Embed whole pictures; attention is global in every block.

        Args:
            images: (N, 3, H, W) normalised pixels of any size; positions are resized.

        Returns:
            (N, D) float32, not normalised.
        """
        images = self.pad(images)
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            for block in self.block_modules:
                tokens = self.run_block(block, tokens, rotary)
            return self.pool(tokens).float()

    def forward_dense(
        self, images: Tensor, blocks: Sequence[int] = (), last_block: str | None = None
    ) -> DenseFeatures:
        """Embed every patch; arguments and errors are those of ``VisionTower``.

        Returns:
            A map of ceil(H / patch) x ceil(W / patch) cells, and the blocks.

        Reference: CLIPSelf, arXiv 2310.01403, section 3.1; unlike MaskCLIP, arXiv 2112.01071, the
        residual and the MLP of the last block are kept. Attention pools pass each cell's value, as
        MaskCLIP does with the pool of CLIP's ResNets.
        """
        form = self.check_dense(blocks, last_block)
        if form == "class_residual" and not self.num_prefix:
            raise ValueError(
                f"{self.name} has no class token for last_block {form}; use value or attention"
            )
        images = self.pad(images)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        outputs: dict[int, Tensor] = {}
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            for number in range(self.num_blocks):
                last = number == self.num_blocks - 1
                strategy = form if last and form != "attention" else None
                tokens = self._run(number, strategy, tokens, rotary, grid)
                if number in blocks:
                    outputs[number] = tokens
            embedding = self.project(tokens[:, self.num_prefix :])
        embedding = embedding.float()
        lengths = _to_map(embedding.norm(dim=-1, keepdim=True), grid)
        embedding = F.normalize(embedding, dim=-1)
        maps = tuple(_to_map(outputs[n][:, self.num_prefix :].float(), grid) for n in blocks)
        return DenseFeatures(_to_map(embedding, grid), maps, lengths)

    def forward_regions(self, images: Tensor, masks: Sequence[Tensor]) -> Tensor:
        """Embed regions by copies of the class token that see their region alone.

        Each copy starts as the class token and runs through all blocks beside the tokens. It sees
        the class token and the patches of its mask; no token sees a copy.

        Args:
            images: (N, 3, H, W) normalised pixels of any size, padded as in ``forward_dense``.
            masks: One (Ki, h, w) bool tensor for each image, the patches of each region; Ki may be
                0. ``layers.region_pool.box_masks`` makes them from boxes.

        Returns:
            (R, D) float32 in the order of images and regions, not normalised. A mask of the whole
            grid gives ``forward_image``, an empty mask what the class token alone tells.

        Raises:
            ValueError: If the embedding is not the class token's, the number of mask tensors is not
                N, or a mask has another grid.

        Reference: the pooling "v1" of the code published with CLIPSelf, arXiv 2310.01403, there
        for OpenAI's ViT only.
        """
        if not self.reads_class_token:
            return super().forward_regions(images, masks)
        images = self.pad(images)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        seen = _seen_tokens(masks, grid, len(images)).to(images.device)
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            copies = tokens[:, :1].expand(-1, seen.shape[2], -1)
            for block in self.block_modules:
                heads = self.heads(block, tokens, rotary)
                query = self.heads(block, copies, None).query
                mixed = masked_attention(query, heads, seen)
                copies = self.finish(block, copies, merge_heads(mixed))
                tokens = self.finish(block, tokens, merge_heads(global_attention(heads)))
            pooled = self.project(copies).float()
        rows = [pooled.new_zeros((0, self.embed_dim))]
        rows += [row[: len(mask)] for row, mask in zip(pooled, masks, strict=True)]
        return torch.cat(rows)

    def _num_tokens(self, images: Tensor) -> int:
        height, width = images.shape[-2:]
        return self.num_prefix + (height // self.patch_size) * (width // self.patch_size)

    def _run(
        self, number: int, strategy: str | None, tokens: Tensor, rotary: Tensor | None, grid: Grid
    ) -> Tensor:
        """Run a block of the dense path, recomputed in the backward pass where that is asked."""
        block = self.block_modules[number]
        name = strategy or self.attention.strategy(number)

        def step(tokens: Tensor) -> Tensor:
            # The backward pass runs outside the caller's context.
            with compute_context(tokens.device, self.precision, tokens.shape[1]):
                if name == "value":
                    return self.run_value_block(block, tokens)
                if name == "class_residual":
                    return self.run_class_residual_block(block, tokens)
                if name == "window":
                    return self.run_window_block(block, tokens, rotary, grid)
                return self.run_block(block, tokens, rotary)

        if self.checkpointing and torch.is_grad_enabled():
            output: Tensor = checkpoint(step, tokens, use_reentrant=False)
            return output
        return step(tokens)


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)


def _seen_tokens(masks: Sequence[Tensor], grid: Grid, num_images: int) -> Tensor:
    """Masks as (N, 1, K, 1 + h * w) bool with the class token always seen; K is the most of one."""
    if len(masks) != num_images:
        raise ValueError(f"got masks for {len(masks)} images but {num_images} images")
    wrong = [tuple(mask.shape[1:]) for mask in masks if tuple(mask.shape[1:]) != grid]
    if wrong:
        raise ValueError(f"mask grid {wrong[0]} is not the tower's {grid}")
    most = max((len(mask) for mask in masks), default=0)
    seen = torch.zeros((num_images, 1, most, 1 + grid[0] * grid[1]), dtype=torch.bool)
    seen[..., 0] = True
    for number, mask in enumerate(masks):
        seen[number, 0, : len(mask), 1:] = mask.flatten(1).bool().cpu()
    return seen
