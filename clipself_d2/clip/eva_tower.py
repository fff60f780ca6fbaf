"""Tower over timm's EVA trunk, as open_clip builds EVA02-B-16 and EVA02-L-14."""

import torch
from open_clip.timm_model import TimmModel
from timm.models.eva import Eva, EvaBlock
from torch import Tensor, nn

from clipself_d2.clip.pos_embed import resize_positions, rotary_table
from clipself_d2.clip.towers import VisionTower, native_grid


class EvaTower(VisionTower):
    """Tower of ``open_clip.timm_model.TimmModel`` around ``timm.models.eva.Eva``.

    Args:
        visual: open_clip's tower.
        name: Model name.
        pixel_mean: RGB mean, 0 to 255.
        pixel_std: RGB deviation.
        precision: fp32, bf16 or auto.

    Raises:
        ValueError: If the trunk is no EVA with a class token, a learned position table and
            pre-norm blocks with separate query, key and value.
    """

    visual: TimmModel

    def __init__(
        self,
        *,
        visual: TimmModel,
        name: str,
        pixel_mean: tuple[float, float, float],
        pixel_std: tuple[float, float, float],
        precision: str = "fp32",
    ) -> None:
        super().__init__(
            visual=visual,
            name=name,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
            precision=precision,
        )
        trunk = visual.trunk
        if not isinstance(trunk, Eva) or trunk.cls_token is None or trunk.global_pool != "token":
            raise ValueError(
                f"{name} is a timm tower of type {type(trunk).__name__} without class-token "
                "pooling; of timm's towers only EVA02 has a dense map here"
            )
        plain = all(type(block) is EvaBlock and block.attn.qkv is None for block in trunk.blocks)
        if not plain or trunk.pos_embed is None or trunk.reg_token is not None:
            raise ValueError(
                f"{name} has fused or post-norm blocks, register tokens or no position table; use "
                "EVA02-B-16 or EVA02-L-14"
            )
        self.width = int(trunk.embed_dim)
        self.embed_dim = int(trunk.head.out_features)
        self.patch_size = int(trunk.patch_embed.patch_size[0])
        self.num_blocks = len(trunk.blocks)
        self.native = native_grid(trunk.pos_embed.shape[1] - 1, name)
        self.image_size = self.native[0] * self.patch_size

    @property
    def transformer_blocks(self) -> nn.ModuleList:
        """The blocks in order."""
        blocks: nn.ModuleList = self.visual.trunk.blocks
        return blocks

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patches, class token, positions; and the rotary table of the grid."""
        trunk = self.visual.trunk
        patches = trunk.patch_embed.proj(images)
        grid = (patches.shape[2], patches.shape[3])
        positions = resize_positions(trunk.pos_embed[0], self.native, grid)
        tokens = trunk.patch_embed.norm(patches.flatten(2).transpose(1, 2))
        cls = trunk.cls_token.to(tokens.dtype).expand(len(tokens), -1, -1)
        tokens = torch.cat([cls, tokens], dim=1) + positions.to(tokens.dtype)
        return trunk.norm_pre(tokens), self.rotary(grid, images.device)

    def rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Build the rotary positions of a grid.

        Args:
            grid: Grid (h, w).
            device: Device of the table.

        Returns:
            (h * w, 2 * head_dim), or None for a trunk without them.
        """
        rope = self.visual.trunk.rope
        if rope is None:
            return None
        return rotary_table(
            grid,
            head_dim=rope.dim,
            temperature=rope.temperature,
            reference=tuple(rope.ref_feat_shape or self.native),
            device=device,
        )

    def run_block(self, block: EvaBlock, tokens: Tensor, extra: Tensor | None) -> Tensor:
        """One pre-norm block with global attention and rotary positions."""
        output: Tensor = block(tokens, rope=extra)
        return output

    def run_value_block(self, block: EvaBlock, tokens: Tensor) -> Tensor:
        """One pre-norm block whose attention passes each token's own value."""
        attention = block.attn
        value = attention.proj(attention.norm(attention.v_proj(block.norm1(tokens))))
        gain1, gain2 = block.gamma_1, block.gamma_2
        tokens = tokens + (value if gain1 is None else gain1 * value)
        hidden = block.mlp(block.norm2(tokens))
        output: Tensor = tokens + (hidden if gain2 is None else gain2 * hidden)
        return output

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm and linear head."""
        trunk = self.visual.trunk
        embedding: Tensor = self.visual.head(trunk.head(trunk.fc_norm(trunk.norm(tokens))))
        return embedding

    def outer_parameters(self) -> list[nn.Parameter]:
        """Patch embedding, class token, positions and outer norms."""
        trunk = self.visual.trunk
        modules = (trunk.patch_embed, trunk.norm_pre, trunk.norm, trunk.fc_norm)
        inner = [parameter for module in modules for parameter in module.parameters()]
        return [trunk.cls_token, trunk.pos_embed, *inner]

    def idle_parameters(self) -> list[nn.Parameter]:
        """Query and key of the last block."""
        attention = self.visual.trunk.blocks[-1].attn
        modules = (attention.q_proj, attention.k_proj, attention.q_norm, attention.k_norm)
        return [parameter for module in modules for parameter in module.parameters()]
