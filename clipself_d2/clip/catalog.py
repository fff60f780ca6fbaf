"""Which models of open_clip have a dense map here, and how it is made."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import open_clip
import torch
from open_clip.model import _build_vision_tower

from clipself_d2.clip.model import build_tower
from clipself_d2.clip.registry import project_models
from clipself_d2.clip.towers.resnet import ResNetTower

_HEADER = """# Image towers

Made by `python tools/list_towers.py --output docs/towers.md` with open_clip {version}; do not edit.

Every supported tower has `forward_image`, which is open_clip's embedding of the picture, and
`forward_dense`, a map of unit-norm embeddings with one cell for each patch (ViT) or each square of
32 px (ConvNeXt). Pictures may have any size: positions are resized, sides that are no multiple of
the patch are padded at the right and the bottom, and the map has the cells that the picture
touches.

| path | a cell is | the picture is |
|---|---|---|
| class-token ViT | final norm and projection of its patch token | the same of the class token |
| averaging ViT | final norm and head of its patch token | the same of the tokens' average |
| attention-pooled ViT | the pool's value, output projection and MLP, then the head, of its patch \
token: what the pool gives for a sequence of that token alone | the pool over all tokens, then the \
head |
| ConvNeXt | norm and head of its column of the last map | the same of the map's average |

`MODEL.CLIP.LAST_BLOCK value` replaces the attention of the last transformer block by identity
attention, as CLIPSelf does. Only class-token towers leave the patch tokens of their last block
untrained; averaging and attention-pooled towers were trained with that block's attention on every
token, so `attention` is the other natural choice for them. A ConvNeXt has no such block.

Windows (`MODEL.CLIP.WINDOW_SIZE`, cells, and `MODEL.CLIP.GLOBAL_BLOCKS`) exist for every ViT. Each
window sees its own patches and the class token; the class token sees all tokens; rotary positions
are those of the whole grid. `GLOBAL_BLOCKS []` leaves the last block of every quarter global.

`forward_regions` (extra class tokens that see one region each) needs a class-token ViT. ResNets
load for RegionCLIP and CRIS, stage by stage, and have no `forward_dense`. Whether weights can be
downloaded is open_clip's business: `open_clip.list_pretrained_tags_by_model(NAME)`.

| model | dense | how, or why not | patch, px | embedding | native size, px |
|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class TowerEntry:
    """A model of open_clip as this project sees it.

    Attributes:
        name: Model name.
        supported: Whether it has a dense map.
        note: How the map is made, or why there is none.
        patch_size: Pixels per cell; 0 where unsupported.
        embed_dim: Width of the joint embedding.
        image_size: Side of the native input, px.
    """

    name: str
    supported: bool
    note: str
    patch_size: int
    embed_dim: int
    image_size: int

    def row(self) -> str:
        """Format as a row of the table.

        Returns:
            One line of Markdown.
        """
        cells = (
            f"`{self.name}`",
            "yes" if self.supported else "no",
            self.note,
            str(self.patch_size or ""),
            str(self.embed_dim),
            str(self.image_size),
        )
        return f"| {' | '.join(cells)} |"


def known_models() -> tuple[str, ...]:
    """List the models that the page describes.

    Returns:
        Names of open_clip's models, sorted without regard to case; this project's own are not among
        them.
    """
    names = set(open_clip.list_models()) - set(project_models())
    return tuple(sorted(names, key=str.lower))


@cache
def describe(name: str) -> TowerEntry:
    """Tell how a model's dense map is made; weights are neither made nor loaded.

    Args:
        name: Model name as open_clip knows it.

    Returns:
        The entry.

    Raises:
        ValueError: If there is no such model.
    """
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"{name!r} is no model of open_clip")
    embed_dim, vision = int(config["embed_dim"]), config["vision_cfg"]
    size = vision.get("image_size", 224)
    if "multimodal_cfg" in config:
        note = "CoCa with a captioning decoder"
        return TowerEntry(name, False, note, 0, embed_dim, size)
    with torch.device("meta"):
        visual = _build_vision_tower(embed_dim, vision, bool(config.get("quick_gelu", False)))
    blank = (0.0, 0.0, 0.0)
    try:
        tower = build_tower(visual, name=name, pixel_mean=blank, pixel_std=blank)
    except ValueError as error:
        return TowerEntry(name, False, _reason(name, error), 0, embed_dim, size)
    if isinstance(tower, ResNetTower):
        return TowerEntry(name, False, "ResNet, for RegionCLIP and CRIS", 0, embed_dim, size)
    return TowerEntry(name, True, tower.path, tower.patch_size, tower.embed_dim, tower.image_size)


def render(names: Iterable[str]) -> str:
    """Write the page of towers.

    Args:
        names: Model names, in the order wanted.

    Returns:
        Markdown with one row for each.

    Raises:
        ValueError: If a model is unknown.
    """
    version = ".".join(open_clip.__version__.split(".")[:2])
    rows = [describe(name).row() for name in names]
    return _HEADER.format(version=version) + "\n".join(rows) + "\n"


def _reason(name: str, error: ValueError) -> str:
    """What an error says of a model, without its name and the advice."""
    return str(error).removeprefix(f"{name} ").split(";", 1)[0].replace("|", "/")
