"""Stochastic depth for the blocks of a tower.

Legend: N images, T tokens, C width.
"""

from timm.layers import DropPath
from torch import nn

from clipself_d2.clip.towers.contract import VisionTower

# Places on the residual branches of a block: open_clip's ViT, timm's ViTs, timm's ConvNeXt.
_BRANCHES = ("ls_1", "ls_2", "drop_path1", "drop_path2", "drop_path")


def set_drop_path(tower: VisionTower, rate: float, num_blocks: int | None = None) -> None:
    """Drop residual branches of whole images at random in training mode.

    The probability grows linearly from 0 in the first block to ``rate`` in the last; what is kept
    is divided by the probability of being kept. State dicts keep their names.

    Args:
        tower: The tower; changed in place.
        rate: Probability in the last block, 0 to below 1; 0 takes stochastic depth away.
        num_blocks: Number of last blocks to which it is applied; None is all.

    Raises:
        ValueError: If the rate is out of range, or a block has layer scales where open_clip's has
            its only place for this.

    Reference: Huang et al., arXiv 1603.09382, with the linear schedule of ViTDet, arXiv 2203.16527,
    appendix A.2. Differs: blocks before the last ``num_blocks`` keep their branches.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"the drop path is {rate}, expected a probability of at least 0, below 1")
    blocks = list(tower.block_modules)
    first = 0 if num_blocks is None else len(blocks) - num_blocks
    if rate and not any(hasattr(block, name) for block in blocks for name in _BRANCHES):
        raise ValueError(f"{tower.name} has no place for a drop path; leave it at 0")
    tower.drop_path = rate
    for number, block in enumerate(blocks):
        # The last block has the whole rate; a tower of one block has 0 in it.
        own = rate * number / max(len(blocks) - 1, 1) if number >= first else 0.0
        for name in _BRANCHES:
            if hasattr(block, name):
                _replace(tower, block, name, own)


def _replace(tower: VisionTower, block: nn.Module, name: str, rate: float) -> None:
    if not isinstance(getattr(block, name), nn.Identity | DropPath):
        if rate == 0:
            return
        raise ValueError(f"{tower.name} has layer scales in place of a drop path; leave it at 0")
    setattr(block, name, DropPath(rate) if rate else nn.Identity())
