"""What all transformer towers share: the two forward passes over a sequence of tokens.

Legend: N images, D joint embedding, C width, H W pixels, h w patch grid, T tokens (class token
first, where there is one), R regions of the batch.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only
from torch.utils.checkpoint import checkpoint

from clipself_d2.clip.precision import autocast_dtype, compute_context
from clipself_d2.clip.towers.attention import (
    AttentionPlan,
    Heads,
    global_attention,
    masked_attention,
    merge_heads,
    quarter_blocks,
    seen_tokens,
    window_attention,
)
from clipself_d2.clip.towers.blocks import BlockTower
from clipself_d2.clip.towers.compiling import COMPILE_MODES, Compiler
from clipself_d2.clip.towers.contract import DenseFeatures
from clipself_d2.clip.towers.dense_form import DenseForm, mix_values, proxy_affinity
from clipself_d2.clip.towers.held import Held, working_blocks
from clipself_d2.clip.towers.positions import resize_positions

Grid = tuple[int, int]


class TokenTower(BlockTower):
    """A tower of transformer blocks with its forward passes.

    Attributes:
        attention: Which block of the dense path uses which attention.
        proxy: From RGB pixels (N, 3, H, W), 0 to 255, and the grid to the features (N, C, h', w')
            of another model, whose affinity forms of external attention take where none is passed.
        compile_mode: As of ``set_compile``.
        compiler: What compiles blocks where ``compile_mode`` is not "off".
        held: Position tables, rotary tables and narrow copies of what is frozen.
    """

    attention = AttentionPlan()
    proxy: Callable[[Tensor, Grid], Tensor] | None = None

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.compile_mode = "off"
        self.compiler = Compiler()
        self.held = Held()

    def run_window_block(
        self, block: nn.Module, tokens: Tensor, rotary: Tensor | None, grid: Grid
    ) -> Tensor:
        """Apply a block with attention in windows; (N, T, C) to (N, T, C)."""
        heads, size = self.heads(block, tokens, rotary), self.attention.window_size
        mixed = window_attention(heads, grid=grid, window_size=size, num_prefix=self.num_prefix)
        return self.finish(block, tokens, merge_heads(mixed))

    def branch(
        self,
        block: nn.Module,
        tokens: Tensor,
        rotary: Tensor | None,
        grid: Grid,
        form: DenseForm,
        strategy: str = "global",
        affinity: Tensor | None = None,
    ) -> tuple[Tensor, Heads | None]:
        """Apply the attention of a form and the output projection of a block.

        (N, T, C), and query, key and value unless the value alone was computed. ``strategy`` is
        "global" or "window", of the attention that is the block's own; ``affinity`` is of
        ``mix_values``.
        """
        gate = None
        if form.gate:
            # A tower without a trained gate weights all by half, as a new one does.
            normed, learned = self.before_attention(block, tokens), self.gate
            num_heads: int = block.attn.num_heads  # type: ignore[union-attr, assignment]
            zero = normed.new_zeros(*normed.shape[:2], num_heads)
            gate = (zero if learned is None else learned(normed)).sigmoid()
        if form.attention == "identity":
            value = self.value(block, tokens)
            if gate is not None:
                # (N, T, A, E) by one weight a head.
                value = (value.view(*gate.shape, -1) * gate[..., None]).flatten(2)
            return self.attended(block, value), None
        heads = self.heads(block, tokens, rotary if form.rotary else None)
        if gate is not None:
            heads = heads._replace(value=heads.value * gate.transpose(1, 2)[..., None])

        def attend(heads: Heads) -> Tensor:
            if strategy == "global":
                return global_attention(heads)
            size = self.attention.window_size
            return window_attention(heads, grid=grid, window_size=size, num_prefix=self.num_prefix)

        mixed = mix_values(
            form, heads, grid=grid, num_prefix=self.num_prefix, attend=attend, affinity=affinity
        )
        return self.attended(block, merge_heads(mixed)), heads

    def run_form_block(
        self,
        block: nn.Module,
        tokens: Tensor,
        rotary: Tensor | None,
        grid: Grid,
        form: DenseForm,
        strategy: str = "global",
        affinity: Tensor | None = None,
        earlier: Tensor | None = None,
    ) -> tuple[Tensor, Heads | None]:
        """Apply the last block in a form: attention, its residual, and the MLP where it has one.

        As ``branch``, to whose output ``earlier`` adds the sum of the branches of the form's
        earlier layers.
        """
        added, heads = self.branch(block, tokens, rotary, grid, form, strategy, affinity)
        if earlier is not None:
            added = earlier + added
        if form.residual == "patch":
            added = tokens + added
        elif form.residual == "class":
            added = tokens[:, :1].expand_as(tokens) + added
        return self.feed_forward(block, added) if form.mlp else added, heads

    def set_attention(self, *, window_size: int = 0, global_blocks: Sequence[int] = ()) -> None:
        """Choose the attention of the dense path, as ``VisionTower``.

        The value-only last block has no attention, whatever is said here.
        """
        unknown = [number for number in global_blocks if not 0 <= number < self.num_blocks]
        if unknown:
            raise ValueError(
                f"{self.name} has blocks 0 to {self.num_blocks - 1}, not {unknown} of global_blocks"
            )
        chosen = tuple(global_blocks) or quarter_blocks(self.num_blocks)
        self.attention = AttentionPlan(window_size, chosen if window_size else ())

    def positions(self, table: nn.Parameter, grid: Grid, *, num_prefix: int) -> Tensor:
        """Resize positions (..., T, C) of the native grid; those of a frozen table are held."""

        def resize() -> Tensor:
            rows = table.flatten(0, -2)
            return resize_positions(rows, self.native, grid, num_prefix=num_prefix)

        return self.held.get("positions", grid, (table,), resize)

    def set_compile(self, mode: str) -> None:
        """Choose what torch.compile makes one graph of.

        "off"; "blocks": each form of a block; "step": all blocks and what stands behind them, on a
        GPU with launches that are recorded and played again.
        """
        if mode not in COMPILE_MODES:
            raise ValueError(f"compile mode is {mode!r}, expected one of {COMPILE_MODES}")
        self.compile_mode = mode

    def forward_image(self, images: Tensor) -> Tensor:
        """Embed whole pictures, as ``VisionTower``; attention is global in every block."""
        images = self.pad(images)
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            inputs = (self, self._working_blocks(tokens), tokens, rotary)
            if self.compile_mode == "step":
                return _own(self.compiler.run(_image_pass, *inputs, replay=tokens.is_cuda))
            return _image_pass(*inputs, run=TokenTower._run_whole).float()

    def forward_dense(
        self,
        images: Tensor,
        blocks: Sequence[int] = (),
        form: DenseForm | str | None = None,
        *,
        affinity: Tensor | None = None,
    ) -> DenseFeatures:
        """Embed every patch, as ``VisionTower``.

        ``affinity`` (N, h * w, h * w), rows that sum to 1, is for forms of external attention; None
        takes that of the tower's ``proxy``.

        Reference: CLIPSelf, arXiv 2310.01403, section 3.1; unlike MaskCLIP, arXiv 2112.01071, the
        residual and the MLP of the last block are kept. Attention pools pass each cell's value, as
        MaskCLIP does with the pool of CLIP's ResNets.
        """
        form = self.check_dense(blocks, form)
        images = self.pad(images)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        if form.attention == "external" and affinity is None:
            affinity = self._proxy_affinity(images, grid)
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            working, wanted = self._working_blocks(tokens), tuple(blocks)
            inputs = (self, working, tokens, rotary, grid, form, affinity, wanted)
            # A block that is computed again in the backward pass is a graph of its own.
            if self.compile_mode == "step" and not self.checkpointing:
                parts = self.compiler.run(_dense_pass, *inputs, replay=tokens.is_cuda)
                embedding, outputs, heads = tree_map_only(Tensor, _own, parts)
            else:
                embedding, outputs, heads = _dense_pass(*inputs, run=TokenTower._run)
        embedding = embedding.float()
        # (N, h * w, D); lengths are kept for what multiplies them in again, as CAT-Seg does.
        lengths = _to_map(embedding.norm(dim=-1, keepdim=True), grid)
        embedding = F.normalize(embedding, dim=-1)
        maps = tuple(_to_map(output.float(), grid) for output in outputs)
        if heads is not None:
            heads = Heads(*(part[:, :, self.num_prefix :] for part in heads))
        return DenseFeatures(_to_map(embedding, grid), maps, lengths, heads)

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
        seen = seen_tokens(masks, grid, len(images)).to(images.device)
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            copies = tokens[:, :1].expand(-1, seen.shape[2], -1)
            for block in self.block_modules:
                heads = self.heads(block, tokens, rotary)
                # A class token has no place, so that its query is not turned.
                query = self.heads(block, copies, None).query
                mixed = masked_attention(query, heads, seen)
                copies = self.finish(block, copies, merge_heads(mixed))
                tokens = self.finish(block, tokens, merge_heads(global_attention(heads)))
            pooled = self.project(copies).float()
        # Images with fewer regions than the most were filled up.
        rows = [pooled.new_zeros((0, self.embed_dim))]
        rows += [row[: len(mask)] for row, mask in zip(pooled, masks, strict=True)]
        return torch.cat(rows)

    def _num_tokens(self, images: Tensor) -> int:
        height, width = images.shape[-2:]
        return self.num_prefix + (height // self.patch_size) * (width // self.patch_size)

    def _proxy_affinity(self, images: Tensor, grid: Grid) -> Tensor | None:
        """The affinity by the tower's proxy, which sees pixels, or None without one."""
        if self.proxy is None:
            return None
        # The tower's pixels are normalised by CLIP's statistics; the proxy has its own.
        mean, std = (images.new_tensor(v).view(3, 1, 1) for v in (self.pixel_mean, self.pixel_std))
        return proxy_affinity(self.proxy(images * std + mean, grid), grid)

    def _working_blocks(self, tokens: Tensor) -> list[nn.Module]:
        return working_blocks(self.block_modules, self.held, autocast_dtype(tokens.device))

    def _run(self, method: Callable[..., Any], *inputs: Any) -> Any:
        """Run a block of the dense path, again in the backward pass where that is asked."""
        if self.checkpointing and torch.is_grad_enabled():
            run = partial(self._run_whole, method)
            return checkpoint(run, *inputs, use_reentrant=False)
        return self._run_whole(method, *inputs)

    def _run_whole(self, method: Callable[..., Any], *inputs: Any) -> Any:
        """Run a block, compiled where that is asked."""
        tokens = inputs[1]
        # The backward pass runs outside the caller's context.
        with compute_context(tokens.device, self.precision, tokens.shape[1]):
            if self.compile_mode == "off":
                return method(self, *inputs)
            return self.compiler.run(method, self, *inputs)


def _plain(tower: TokenTower, method: Callable[..., Any], *inputs: Any) -> Any:
    return method(tower, *inputs)


def _image_pass(
    tower: TokenTower,
    blocks: list[nn.Module],
    tokens: Tensor,
    rotary: Tensor | None,
    run: Callable[..., Any] = _plain,
) -> Tensor:
    """Tokens of a picture to its embedding, (N, T, C) to (N, D)."""
    for block in blocks:
        tokens = run(tower, BlockTower.run_block, block, tokens, rotary)
    return tower.pool(tokens)


def _dense_pass(
    tower: TokenTower,
    blocks: list[nn.Module],
    tokens: Tensor,
    rotary: Tensor | None,
    grid: Grid,
    form: DenseForm,
    affinity: Tensor | None,
    wanted: tuple[int, ...],
    run: Callable[..., Any] = _plain,
) -> tuple[Tensor, list[Tensor], Heads | None]:
    """Tokens to the embedding of every patch, (N, h * w, D), the patches of blocks, the heads."""
    outputs: dict[int, Tensor] = {}
    last = len(blocks) - 1
    # Branches of the form beside the trained blocks; of the last block alone, as a rule.
    first = len(blocks) if form.as_trained else len(blocks) - form.layers
    earlier: Tensor | None = None
    heads = None
    for number, block in enumerate(blocks):
        strategy = tower.attention.strategy(number)
        inputs = (block, tokens, rotary, grid, form, strategy, affinity)
        if number == last and not form.as_trained:
            tokens, heads = run(tower, TokenTower.run_form_block, *inputs, earlier)
        else:
            if number >= first:
                added, _ = run(tower, TokenTower.branch, *inputs)
                earlier = added if earlier is None else earlier + added
            if strategy == "window":
                tokens = run(tower, TokenTower.run_window_block, block, tokens, rotary, grid)
            else:
                tokens = run(tower, BlockTower.run_block, block, tokens, rotary)
        if number in wanted:
            outputs[number] = tokens[:, tower.num_prefix :]
    embedding = tower.project(tokens[:, tower.num_prefix :])
    return embedding, [outputs[number] for number in wanted], heads


def _own(result: Tensor) -> Tensor:
    """Copy to float32; a recorded pass writes its next results over the last ones."""
    return result.to(torch.float32, copy=True)


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *grid)
