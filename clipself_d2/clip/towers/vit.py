"""Tower over open_clip's own ViT: OpenAI, LAION, DataComp, MetaCLIP, CLIPA and the embedded model.

Legend: N images, D joint embedding, C width, h w patch grid, T tokens (class token first).
"""

from typing import Any

import torch
import torch.nn.functional as F
from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
from torch import Tensor, nn

from clipself_d2.clip.towers.attention import Heads, split_heads
from clipself_d2.clip.towers.positions import native_grid
from clipself_d2.clip.towers.tokens import TokenTower

# How a cell becomes an embedding, by open_clip's pooling.
_PATHS = {
    "tok": "class-token ViT: final norm and projection of each patch",
    "avg": "averaging ViT: final norm and projection of each patch",
}


class OpenClipViTTower(TokenTower):
    """Tower of ``open_clip.transformer.VisionTransformer``.

    The picture's embedding is the class token's, or (CLIPA) that of the average of the patches.

    Arguments are those of ``VisionTower``.

    Raises:
        ValueError: If the tower pools by attention, or its blocks are of another kind.
    """

    visual: VisionTransformer

    def read_visual(self) -> None:
        """Read the pooling and the grid of positions."""
        visual, name = self.visual, self.name
        plain = visual.attn_pool is None and visual.pool_type in _PATHS and visual.proj is not None
        if not plain:
            raise ValueError(
                f"{name} pools by a captioner's attention or not at all; use pool_type tok or avg"
            )
        blocks = visual.transformer.resblocks
        if not all(type(block) is ResidualAttentionBlock for block in blocks):
            kind = type(blocks[0]).__name__
            raise ValueError(f"{name} has blocks of type {kind}; use a plain ViT")
        self.num_prefix = 1
        self.reads_class_token = visual.pool_type == "tok"
        self.path = _PATHS[visual.pool_type]
        self.width = int(visual.conv1.out_channels)
        self.embed_dim = int(visual.proj.shape[1])
        self.patch_size = int(visual.conv1.kernel_size[0])
        self.num_blocks = len(visual.transformer.resblocks)
        self.native = native_grid(len(visual.positional_embedding) - 1, name)
        self.image_size = self.native[0] * self.patch_size

    @property
    def block_modules(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.visual.transformer.resblocks)

    def embed(self, images: Tensor) -> tuple[Tensor, None]:
        """Patches, class token, positions, first norm."""
        visual = self.visual
        patches = visual.conv1(images)
        positions = self.positions(
            visual.positional_embedding, (patches.shape[2], patches.shape[3]), num_prefix=1
        )
        tokens = patches.flatten(2).transpose(1, 2)
        cls = visual.class_embedding.to(tokens.dtype).expand(tokens.shape[0], 1, -1)
        tokens = torch.cat([cls, tokens], dim=1) + positions.to(tokens.dtype)
        return visual.ln_pre(tokens), None

    def heads(self, block: ResidualAttentionBlock, tokens: Tensor, rotary: Tensor | None) -> Heads:
        """First norm, and the three thirds of one matrix."""
        attention = block.attn
        fused = F.linear(
            self.before_attention(block, tokens), attention.in_proj_weight, attention.in_proj_bias
        )
        return Heads(*(split_heads(part, attention.num_heads) for part in fused.chunk(3, dim=-1)))

    def value(self, block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
        """First norm, and the last third of the matrix."""
        attention, width = block.attn, tokens.shape[-1]
        weight, bias = attention.in_proj_weight[2 * width :], attention.in_proj_bias[2 * width :]
        return F.linear(self.before_attention(block, tokens), weight, bias)

    def before_attention(self, block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
        """First norm."""
        normed: Tensor = block.ln_1(tokens)
        return normed

    def attended(self, block: ResidualAttentionBlock, mixed: Tensor) -> Tensor:
        """Output projection with its layer scale."""
        added: Tensor = block.ls_1(block.attn.out_proj(mixed))
        return added

    def feed_forward(self, block: ResidualAttentionBlock, tokens: Tensor) -> Tensor:
        """Second norm and MLP with its layer scale."""
        output: Tensor = tokens + block.ls_2(block.mlp(block.ln_2(tokens)))
        return output

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and projection matrix."""
        embedding: Tensor = self.visual.ln_post(tokens) @ self.visual.proj
        return embedding

    def pool(self, tokens: Tensor) -> Tensor:
        """The class token, or the patches averaged before or after the final norm."""
        if self.reads_class_token:
            return self.project(tokens[:, 0])
        if self.visual.final_ln_after_pool:
            return self.project(tokens[:, 1:].mean(dim=1))
        # The projection is linear, so that its mean is the projection of the mean.
        return self.project(tokens[:, 1:]).mean(dim=1)

    def outer_parameters(self) -> list[nn.Parameter]:
        """Patch embedding, class token, positions, first and final norm."""
        visual = self.visual
        return [
            *visual.conv1.parameters(),
            visual.class_embedding,
            visual.positional_embedding,
            *visual.ln_pre.parameters(),
            *visual.ln_post.parameters(),
        ]

    def own_parameters(self, block: ResidualAttentionBlock) -> dict[str, list[nn.Parameter]]:
        """MLP and second norm."""
        modules = (block.ln_2, block.mlp, block.ls_2)
        return {"query": [], "key": [], "mlp": [p for m in modules for p in m.parameters()]}

    def shared_parameters(self, block: ResidualAttentionBlock) -> list[nn.Parameter]:
        """The one matrix of query, key and value, and its bias."""
        attention: Any = block.attn
        return [attention.in_proj_weight, attention.in_proj_bias]
