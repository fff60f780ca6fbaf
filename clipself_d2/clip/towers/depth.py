"""Which parameter of a tower belongs to which depth."""

from clipself_d2.clip.towers.contract import VisionTower

# Beginnings of the names of what stands behind the blocks, in open_clip's and timm's spelling.
_BEHIND = (
    "visual.ln_post.",
    "visual.proj",
    "visual.attnpool.",
    "visual.head.",
    "visual.trunk.norm.",
    "visual.trunk.fc_norm.",
    "visual.trunk.attn_pool.",
    "visual.trunk.head.",
)


def depth_of_parameters(tower: VisionTower) -> dict[str, int]:
    """Number every parameter by its place in the tower.

    Args:
        tower: The tower.

    Returns:
        By name as in ``named_parameters``: 0 before the blocks (patch embedding, positions, first
        norm), i + 1 in block i, ``num_blocks`` + 1 behind the last (final norm, projection).
    """
    depth = {
        id(parameter): number + 1
        for number, block in enumerate(tower.transformer_blocks)
        for parameter in block.parameters()
    }
    last = tower.num_blocks + 1
    return {
        name: depth.get(id(parameter), last if name.startswith(_BEHIND) else 0)
        for name, parameter in tower.named_parameters()
    }
