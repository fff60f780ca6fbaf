"""Tower over timm's ViT: SigLIP, SigLIP2, ViTamin, MobileCLIP's ViTs and plain averaging ViTs.

Legend: N images, D joint embedding, C width, A heads, E channels of a head, h w patch grid,
T tokens (class token first, where there is one).
"""

from typing import Any, TypeAlias, get_args

import torch
import torch.nn.functional as F
from open_clip.timm_model import TimmModel
from timm.layers import AttentionPoolLatent
from timm.layers.attention import Attention, AttentionRope
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from clipself_d2.clip.precision import as_operand
from clipself_d2.clip.towers.attention import Heads, split_heads
from clipself_d2.clip.towers.positions import all_turns, native_grid, turn_pairs
from clipself_d2.clip.towers.tokens import TokenTower

AnyBlock: TypeAlias = Block | EvaBlock | EvaBlockPostNorm
AnyAttention: TypeAlias = Attention | AttentionRope | EvaAttention
# How a cell becomes an embedding, by timm's pooling.
_PATHS = {
    "token": "class-token ViT: final norm and head of each patch",
    "avg": "averaging ViT: final norm and head of each patch",
    "map": "attention-pooled ViT: value path of the pool and head for each patch",
}


class TimmViTTower(TokenTower):
    """Tower of ``open_clip.timm_model.TimmModel`` around a ViT of timm.

    Arguments are those of ``VisionTower``.

    Raises:
        ValueError: If the trunk pools in another way, has register tokens, or its blocks are of
            another kind.
    """

    visual: TimmModel

    def read_visual(self) -> None:
        """Read the pooling, the tokens and the stem's grid."""
        visual, name = self.visual, self.name
        trunk = visual.trunk
        _check_trunk(trunk, name)
        self.num_prefix = int(trunk.num_prefix_tokens)
        self.reads_class_token = trunk.global_pool == "token"
        self.path = _PATHS[trunk.global_pool]
        self.width = int(trunk.embed_dim)
        self.num_blocks = len(trunk.blocks)
        # Where the class token has no position, the table is the patches' alone.
        self.num_placed = 0 if trunk.no_embed_class else self.num_prefix
        stem = trunk.patch_embed
        self.native = native_grid(stem.num_patches, name)
        self.patch_size = int(stem.feat_ratio())
        # SigLIP's 384 px are no multiple of its patch of 14; its stem drops the last 6.
        self.image_size = self.native[0] * self.patch_size
        self.embed_dim = _embed_dim(visual, self.width)

    @property
    def block_modules(self) -> list[nn.Module]:
        """The blocks in order."""
        return list(self.visual.trunk.blocks)

    def train(self, mode: bool = True) -> "TimmViTTower":
        """Set the mode; batch norms of a convolutional stem keep CLIP's statistics."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def embed(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Patches (behind a convolutional stem, where there is one), class token, positions."""
        trunk = self.visual.trunk
        stem = trunk.patch_embed
        patches = stem.proj(stem.backbone(images) if hasattr(stem, "backbone") else images)
        grid = (patches.shape[2], patches.shape[3])
        tokens = patches.flatten(2).transpose(1, 2)
        if hasattr(stem, "norm"):
            tokens = stem.norm(tokens)
        if self.num_prefix:
            cls = trunk.cls_token.to(tokens.dtype).expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([cls, tokens], dim=1)
        if trunk.pos_embed is not None:
            positions = self.positions(trunk.pos_embed, grid, num_prefix=self.num_placed)
            # Prefix tokens without a row in the table get zeros.
            unplaced = self.num_prefix - self.num_placed
            tokens = tokens + F.pad(positions, (0, 0, unplaced, 0)).to(tokens.dtype)
        return trunk.norm_pre(tokens), self._held_rotary(grid, images.device)

    def _held_rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Turns of all tokens."""

        def make() -> Tensor | None:
            table = self.rotary(grid, device)
            return None if table is None else all_turns(table, self.num_prefix)

        return self.held.get("rotary", (grid, device), (), make)

    def rotary(self, grid: tuple[int, int], device: torch.device) -> Tensor | None:
        """Rotary positions of a grid; None, since this trunk has a learned table alone."""
        return None

    def heads(self, block: AnyBlock, tokens: Tensor, rotary: Tensor | None) -> Heads:
        """First norm, query, key and value, and rotary positions of the patches."""
        attention, hidden = block.attn, self.before_attention(block, tokens)
        if attention.qkv is None:
            fused = [
                proj(hidden) for proj in (attention.q_proj, attention.k_proj, attention.v_proj)
            ]
        else:
            outputs = F.linear(hidden, attention.qkv.weight, _fused_bias(attention))
            fused = list(outputs.chunk(3, dim=-1))
        query, key, value = (split_heads(part, attention.num_heads) for part in fused)
        # Before the rotation, as in timm; norms are over a head's channels.
        query, key = attention.q_norm(query), attention.k_norm(key)
        if rotary is not None:
            query, key = (turn_pairs(part, rotary) for part in (query, key))
        # Norms and turns may have widened them under autocast; the kernel wants one number type.
        return Heads(query.type_as(value), key.type_as(value), value)

    def value(self, block: AnyBlock, tokens: Tensor) -> Tensor:
        """First norm and value."""
        attention, hidden = block.attn, self.before_attention(block, tokens)
        if attention.qkv is None:
            value: Tensor = attention.v_proj(hidden)
            return value
        start, bias = 2 * len(attention.qkv.weight) // 3, _fused_bias(attention)
        return F.linear(
            hidden, attention.qkv.weight[start:], None if bias is None else bias[start:]
        )

    def before_attention(self, block: AnyBlock, tokens: Tensor) -> Tensor:
        """First norm, which some blocks of EVA have behind the attention."""
        return as_operand(tokens if isinstance(block, EvaBlockPostNorm) else block.norm1(tokens))

    def attended(self, block: AnyBlock, mixed: Tensor) -> Tensor:
        """Output projection with norms, layer scale and stochastic depth as timm has."""
        attention = block.attn
        mixed = attention.proj_drop(attention.proj(attention.norm(mixed)))
        post_norm = isinstance(block, EvaBlockPostNorm)
        added: Tensor = block.drop_path1(
            block.norm1(mixed) if post_norm else _scale(block, 1, mixed)
        )
        return added

    def feed_forward(self, block: AnyBlock, tokens: Tensor) -> Tensor:
        """MLP with norms, layer scale and stochastic depth as timm has."""
        if isinstance(block, EvaBlockPostNorm):
            hidden = block.norm2(block.mlp(tokens))
        else:
            hidden = _scale(block, 2, block.mlp(as_operand(block.norm2(tokens))))
        output: Tensor = tokens + block.drop_path2(hidden)
        return output

    def project(self, tokens: Tensor) -> Tensor:
        """Final norm, the pool's value path where there is a pool, and the head."""
        trunk = self.visual.trunk
        tokens = trunk.norm(tokens)
        if trunk.attn_pool is not None:
            tokens = pool_each(trunk.attn_pool, tokens)
        embedding: Tensor = self.visual.head(trunk.head(trunk.fc_norm(tokens)))
        return embedding

    def pool(self, tokens: Tensor) -> Tensor:
        """Pooling and head as timm has them."""
        trunk = self.visual.trunk
        embedding: Tensor = self.visual.head(trunk.forward_head(trunk.norm(tokens)))
        return embedding

    def outer_parameters(self) -> list[nn.Parameter]:
        """Patch embedding, class token, positions and outer norms; no attention pool."""
        trunk = self.visual.trunk
        modules = (trunk.patch_embed, trunk.norm_pre, trunk.norm, trunk.fc_norm)
        inner = [parameter for module in modules for parameter in module.parameters()]
        tables = [trunk.cls_token, trunk.pos_embed]
        return [*(table for table in tables if table is not None), *inner]

    def own_parameters(self, block: AnyBlock) -> dict[str, list[nn.Parameter]]:
        """Query and key where they are parameters of their own; MLP, its norm and layer scale."""
        attention: Any = block.attn
        query, key = [attention.q_norm], [attention.k_norm]
        if attention.qkv is None:
            query.append(attention.q_proj)
            key.append(attention.k_proj)
        mlp = [block.norm2, block.mlp, getattr(block, "ls2", nn.Identity())]
        own = {
            name: [p for module in modules for p in module.parameters()]
            for name, modules in (("query", query), ("key", key), ("mlp", mlp))
        }
        bias, gain = getattr(attention, "q_bias", None), getattr(block, "gamma_2", None)
        own["query"] += [] if bias is None else [bias]
        own["mlp"] += [] if gain is None else [gain]
        return own

    def shared_parameters(self, block: AnyBlock) -> list[nn.Parameter]:
        """The one matrix of query, key and value, and its bias, where there is one."""
        qkv = block.attn.qkv
        return [] if qkv is None else list(qkv.parameters())


def pool_each(pool: AttentionPoolLatent, tokens: Tensor) -> Tensor:
    """Pool each token (N, T, C) by itself: what timm's attention pool gives for a sequence of one.

    Attention over one token passes its value, whatever the query, so what remains is the value and
    output projections and the MLP.
    """
    # Keys are the first half of the fused matrix.
    width = tokens.shape[-1]
    bias = pool.kv.bias
    value = F.linear(tokens, pool.kv.weight[width:], None if bias is None else bias[width:])
    output: Tensor = pool.proj_drop(pool.proj(value))
    return output if pool.mlp is None else output + pool.mlp(pool.norm(output))


def _check_trunk(trunk: Eva | VisionTransformer, name: str) -> None:
    if trunk.global_pool not in _PATHS:
        raise ValueError(
            f"{name} pools by {trunk.global_pool!r}; a dense map is defined for {tuple(_PATHS)}"
        )
    if trunk.reg_token is not None:
        raise ValueError(f"{name} has register tokens; use another ViT")
    for block in trunk.blocks:
        attention: Any = getattr(block, "attn", None)
        plain = type(block) in get_args(AnyBlock) and type(attention) in get_args(AnyAttention)
        if not plain or attention.gate is not None or getattr(attention, "num_kv_groups", 1) != 1:
            raise ValueError(
                f"{name} has blocks of type {type(block).__name__} with attention of type "
                f"{type(attention).__name__}, gated or grouped; use a plain ViT"
            )
    pool = trunk.attn_pool
    if (trunk.global_pool == "map") != (pool is not None) or (
        pool is not None and (pool.latent_len != 1 or pool.pos_embed is not None)
    ):
        raise ValueError(f"{name} has an attention pool with positions or more than one query")


def _embed_dim(visual: TimmModel, width: int) -> int:
    """Outputs of the last matrix behind the trunk's norm."""
    for head in (visual.head, visual.trunk.head):
        linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
        if linears:
            return int(linears[-1].out_features)
    return width


def _fused_bias(attention: AnyAttention) -> Tensor | None:
    """Bias of a fused matrix; EVA's key has none of its own."""
    if getattr(attention, "q_bias", None) is not None:
        return torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    bias: Tensor | None = attention.qkv.bias
    return bias


def _scale(block: AnyBlock, half: int, hidden: Tensor) -> Tensor:
    """Layer scale of a block's half; EVA's are parameters, the ViT's modules."""
    if isinstance(block, Block):
        scaled: Tensor = getattr(block, f"ls{half}")(hidden)
        return scaled
    gain: Tensor | None = getattr(block, f"gamma_{half}")
    return hidden if gain is None else gain * hidden
