"""Which models of open_clip have a dense map here, and how it is made."""

from dataclasses import dataclass
from functools import cache

import open_clip
import torch
from open_clip.model import _build_vision_tower

from clipself_d2.clip.model import build_tower
from clipself_d2.clip.registry import needs_transformers, project_models


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
        needs_transformers: Whether the text tower needs that library.
    """

    name: str
    supported: bool
    note: str
    patch_size: int
    embed_dim: int
    image_size: int
    needs_transformers: bool = False


def known_models() -> tuple[str, ...]:
    """List open_clip's models, sorted without regard to case, without this project's own."""
    names = set(open_clip.list_models()) - set(project_models())
    return tuple(sorted(names, key=str.lower))


@cache
def describe(name: str) -> TowerEntry:
    """Tell how a model's dense map is made; weights are neither made nor loaded."""
    config = open_clip.get_model_config(name)
    if config is None:
        raise ValueError(f"{name!r} is no model of open_clip")
    embed_dim, vision = int(config["embed_dim"]), config["vision_cfg"]
    size, words = vision.get("image_size", 224), needs_transformers(name)
    if "multimodal_cfg" in config:
        note = "CoCa with a captioning decoder"
        return TowerEntry(name, False, note, 0, embed_dim, size, words)
    with torch.device("meta"):
        visual = _build_vision_tower(embed_dim, vision, bool(config.get("quick_gelu", False)))
    blank = (0.0, 0.0, 0.0)
    try:
        tower = build_tower(visual, name=name, pixel_mean=blank, pixel_std=blank)
    except ValueError as error:
        # The reason alone, without the name and the advice.
        note = str(error).removeprefix(f"{name} ").split(";", 1)[0].replace("|", "/")
        return TowerEntry(name, False, note, 0, embed_dim, size, words)
    sizes = tower.patch_size, tower.embed_dim, tower.image_size
    return TowerEntry(name, True, tower.path, *sizes, words)
