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
from clipself_d2.clip.towers.blocks import BlockTower
from clipself_d2.clip.towers.contract import DenseFeatures
from clipself_d2.clip.towers.dense_form import DenseForm, mix_values, proxy_affinity

Grid = tuple[int, int]
# Name of the gate in a tower's weights, below "visual.".
GATE = "dense_gate"


class TokenTower(BlockTower):
    """A tower of transformer blocks with its forward passes.

    Attributes:
        attention: Which block of the dense path uses which attention.
        proxy: From RGB pixels (N, 3, H, W), 0 to 255, and the grid to the features (N, C, h', w')
            of another model, whose affinity forms of external attention take where none is passed.
    """

    attention = AttentionPlan()
    proxy: Callable[[Tensor, Grid], Tensor] | None = None

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

    def branch(
        self,
        number: int,
        tokens: Tensor,
        rotary: Tensor | None,
        form: DenseForm,
        *,
        grid: Grid,
        affinity: Tensor | None = None,
    ) -> tuple[Tensor, Heads | None]:
        """Apply the attention of a form and the output projection of a block.

        Args:
            number: 0-based number of the block.
            tokens: (N, T, C), input of the block.
            rotary: Rotary table of the patches.
            form: Form of the dense path.
            grid: Grid (h, w).
            affinity: Of ``mix_values``.

        Returns:
            (N, T, C), and query, key and value unless the value alone was computed.
        """
        block = self.block_modules[number]
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
                value = (value.unflatten(-1, (gate.shape[-1], -1)) * gate[..., None]).flatten(2)
            return self.attended(block, value), None
        heads = self.heads(block, tokens, rotary if form.rotary else None)
        if gate is not None:
            heads = heads._replace(value=heads.value * gate.transpose(1, 2)[..., None])

        def attend(heads: Heads) -> Tensor:
            if self.attention.strategy(number) == "global":
                return global_attention(heads)
            size = self.attention.window_size
            return window_attention(heads, grid=grid, window_size=size, num_prefix=self.num_prefix)

        mixed = mix_values(
            form,
            heads,
            grid=grid,
            num_prefix=self.num_prefix,
            attend=attend,
            affinity=affinity,
        )
        return self.attended(block, merge_heads(mixed)), heads

    def run_last_block(self, tokens: Tensor, added: Tensor, form: DenseForm) -> Tensor:
        """Add the residual of a form, and apply the MLP of the last block where the form has it.

        Args:
            tokens: (N, T, C), input of the block.
            added: (N, T, C), sum of the branches of the form's layers.
            form: Form of the dense path.

        Returns:
            (N, T, C).
        """
        if form.residual == "patch":
            added = tokens + added
        elif form.residual == "class":
            added = tokens[:, :1].expand_as(tokens) + added
        return self.feed_forward(self.block_modules[-1], added) if form.mlp else added

    @property
    def gate(self) -> nn.Linear | None:
        """Learned weights of the heads in forms with a gate, C to A, or None."""
        return getattr(self.visual, GATE, None)

    def attach_gate(self) -> None:
        """Add a gate that weights all heads of all tokens by half, unless there is one."""
        if self.gate is None:
            block = self.block_modules[-1]
            weight = next(block.parameters())
            gate = nn.Linear(self.width, block.attn.num_heads).to(weight)  # type: ignore[union-attr, arg-type]
            nn.init.zeros_(gate.weight)
            nn.init.zeros_(gate.bias)
            setattr(self.visual, GATE, gate)

    def set_dense_form(self, form: DenseForm | str) -> None:
        """Choose the form of the dense path; one with a gate gets one, others lose it.

        Args:
            form: Form of the last block, or its name.

        Raises:
            ValueError: If the tower cannot have it.
        """
        super().set_dense_form(form)
        if self.dense_form.gate:
            self.attach_gate()
        elif self.gate is not None:
            delattr(self.visual, GATE)

    def check_form(self, form: DenseForm) -> None:
        """Raise a ValueError unless the tower can have a form."""
        if form.residual == "class" and not self.num_prefix:
            raise ValueError(
                f"{self.name} has no class token for the residual of the dense form {form}; use "
                "clipself or attention"
            )
        if form.layers > self.num_blocks:
            raise ValueError(
                f"the dense form {form} sums {form.layers} blocks, and {self.name} has "
                f"{self.num_blocks}"
            )

    def idle_parameters(self) -> list[nn.Parameter]:
        """Query, key and MLP of the last block where its form does not use them."""
        form, own = self.dense_form, self.own_parameters(self.block_modules[-1])
        idle = {"query", "key"} - form.reads | (set() if form.mlp else {"mlp"})
        return [parameter for part in sorted(idle) for parameter in own[part]]

    def idle_rows(self) -> list[tuple[nn.Parameter, slice]]:
        """Query and key of the last block where they share a matrix with the value."""
        idle = [
            number for number, name in enumerate(Heads._fields) if name not in self.dense_form.reads
        ]
        if not idle:
            return []
        return [
            (parameter, slice(*(len(parameter) * n // 3 for n in (idle[0], idle[-1] + 1))))
            for parameter in self.shared_parameters(self.block_modules[-1])
        ]

    def freeze(self, trained_blocks: int = 0, *, behind: bool = True, parts: str = "all") -> None:
        """Freeze all but the last blocks; a gate learns with any of them.

        Arguments and errors are those of ``VisionTower``.
        """
        super().freeze(trained_blocks, behind=behind, parts=parts)
        if self.gate is not None:
            self.gate.requires_grad_(trained_blocks != 0)

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
        self,
        images: Tensor,
        blocks: Sequence[int] = (),
        form: DenseForm | str | None = None,
        *,
        affinity: Tensor | None = None,
    ) -> DenseFeatures:
        """Embed every patch; arguments and errors are those of ``VisionTower``.

        Args:
            images: (N, 3, H, W) normalised pixels of any size and floating type.
            blocks: 0-based numbers of the blocks whose outputs are wanted.
            form: Form of the last block or its name; None: the tower's ``dense_form``.
            affinity: (N, h * w, h * w), rows that sum to 1, for forms of external attention; None
                takes that of the tower's ``proxy``.

        Returns:
            A map of ceil(H / patch) x ceil(W / patch) cells, and the blocks.

        Reference: CLIPSelf, arXiv 2310.01403, section 3.1; unlike MaskCLIP, arXiv 2112.01071, the
        residual and the MLP of the last block are kept. Attention pools pass each cell's value, as
        MaskCLIP does with the pool of CLIP's ResNets.
        """
        form = self.check_dense(blocks, form)
        images = self.pad(images)
        grid = (images.shape[2] // self.patch_size, images.shape[3] // self.patch_size)
        if form.attention == "external" and affinity is None:
            affinity = self._proxy_affinity(images, grid)
        outputs: dict[int, Tensor] = {}
        last = self.num_blocks - 1
        # Branches of the form beside the trained blocks; of the last block alone, as a rule.
        first = self.num_blocks if form.as_trained else self.num_blocks - form.layers
        branches: list[Tensor] = []
        heads = None
        with compute_context(images.device, self.precision, self._num_tokens(images)):
            tokens, rotary = self.embed(images)
            for number in range(self.num_blocks):
                if number >= first:
                    options = {"grid": grid, "affinity": affinity}
                    run = partial(self.branch, number, rotary=rotary, form=form, **options)
                    added, heads = self._recompute(run, tokens)
                    branches.append(added)
                if number == last and not form.as_trained:
                    run = partial(self.run_last_block, form=form)
                    tokens = self._recompute(run, tokens, sum(branches[1:], branches[0]))
                else:
                    tokens = self._recompute(
                        partial(self._run_trained, number, rotary, grid), tokens
                    )
                if number in blocks:
                    outputs[number] = tokens
            embedding = self.project(tokens[:, self.num_prefix :])
        embedding = embedding.float()
        lengths = _to_map(embedding.norm(dim=-1, keepdim=True), grid)
        embedding = F.normalize(embedding, dim=-1)
        maps = tuple(_to_map(outputs[n][:, self.num_prefix :].float(), grid) for n in blocks)
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

    def _proxy_affinity(self, images: Tensor, grid: Grid) -> Tensor | None:
        """The affinity by the tower's proxy, which sees pixels, or None without one."""
        if self.proxy is None:
            return None
        mean, std = (
            images.new_tensor(values).view(3, 1, 1) for values in (self.pixel_mean, self.pixel_std)
        )
        return proxy_affinity(self.proxy(images * std + mean, grid), grid)

    def _run_trained(
        self, number: int, rotary: Tensor | None, grid: Grid, tokens: Tensor
    ) -> Tensor:
        """Run a block of the dense path as it was trained, in windows where that is set."""
        block = self.block_modules[number]
        if self.attention.strategy(number) == "window":
            return self.run_window_block(block, tokens, rotary, grid)
        return self.run_block(block, tokens, rotary)

    def _recompute(self, run: Callable[..., Any], tokens: Tensor, *others: Tensor) -> Any:
        """Call a function, again in the backward pass where that is asked."""

        def step(tokens: Tensor, *others: Tensor) -> Any:
            # The backward pass runs outside the caller's context.
            with compute_context(tokens.device, self.precision, tokens.shape[1]):
                return run(tokens, *others)

        if self.checkpointing and torch.is_grad_enabled():
            return checkpoint(step, tokens, *others, use_reentrant=False)
        return step(tokens, *others)


def _to_map(tokens: Tensor, grid: Grid) -> Tensor:
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


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
