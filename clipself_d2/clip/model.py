"""Building CLIP models by name."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import open_clip
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from timm.models.convnext import ConvNeXt
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer
from torch import Tensor, nn

from clipself_d2.clip.precision import check_precision
from clipself_d2.clip.randomness import own_randomness
from clipself_d2.clip.registry import (
    check_name,
    check_transformers,
    fetch_weights,
    find_weights,
    is_published,
    project_models,
    register_project_models,
)
from clipself_d2.clip.text import TextEncoder
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.clip.towers.convnext import ConvNeXtTower
from clipself_d2.clip.towers.eva import EvaTower
from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.clip.towers.timm_vit import TimmViTTower
from clipself_d2.clip.towers.vit import OpenClipViTTower
from clipself_d2.clip.weights.loading import load_clip_weights, load_tower_weights

logger = logging.getLogger(__name__)

register_project_models()

# Towers by the type of open_clip's image tower, and by that of the trunk of its timm towers.
_TOWERS = ((VisionTransformer, OpenClipViTTower), (ModifiedResNet, ResNetTower))
_TIMM_TOWERS = ((Eva, EvaTower), (TimmVisionTransformer, TimmViTTower), (ConvNeXt, ConvNeXtTower))


class ClipModel(nn.Module):
    """A whole CLIP: image tower and text tower of one joint embedding."""

    def __init__(self, *, name: str, tower: VisionTower, text: TextEncoder) -> None:
        super().__init__()
        self.name = name
        self.tower = tower
        self.text = text

    @property
    def logit_scale(self) -> float:
        """Multiplier of the cosine in training, exp of the stored weight; about 100."""
        return float(self.text.clip.logit_scale.detach().exp())

    def open_clip_state_dict(self) -> dict[str, Tensor]:
        """Collect the weights by open_clip's names, which ``load_clip`` reads back."""
        return {**self.tower.state_dict(), **self.text.clip.state_dict()}


def build_tower(
    visual: nn.Module,
    *,
    name: str,
    pixel_mean: tuple[float, float, float],
    pixel_std: tuple[float, float, float],
    precision: str = "fp32",
) -> VisionTower:
    """Wrap open_clip's image tower ``visual``; a ValueError says that it has no dense path here.

    Mean and deviation are of RGB, 0 to 255.
    """
    check_precision(precision)
    timm_tower = isinstance(visual, TimmModel)
    trunk = visual.trunk if timm_tower else visual
    for kind, tower in _TIMM_TOWERS if timm_tower else _TOWERS:
        if isinstance(trunk, kind):
            return tower(
                visual=visual,
                name=name,
                pixel_mean=pixel_mean,
                pixel_std=pixel_std,
                precision=precision,
            )
    raise ValueError(
        f"{name} has an image tower of type {type(trunk).__name__}; dense features need a ViT, an "
        "EVA, a ConvNeXt or a CLIP ResNet, such as ViT-B-16-quickgelu or EVA02-B-16"
    )


def load_clip(name: str, weights: str | None = None, *, precision: str = "fp32") -> ClipModel:
    """Build a CLIP in eval mode.

    Args:
        name: Model name as open_clip knows it, or one of this project's.
        weights: A pretrained tag, a file with the whole CLIP, or None for random weights, which
            depend on the seed of torch's generator alone and draw nothing from it; of a name that
            begins with ``hf-hub:`` or ``local-dir:``, None takes the weights that are there.
        precision: Number type of the image tower: fp32, bf16 or auto.

    Returns:
        The model; its parameters are trainable until frozen.

    Raises:
        ValueError: If the name or the tag is unknown, the file does not fit, or the text tower
            needs a library that is not installed.
    """
    check_name(name)
    check_transformers(name)
    clip, tower, path = _build(name, weights, precision)
    text = TextEncoder(
        clip=clip,
        tokenizer=open_clip.get_tokenizer(name),
        embed_dim=int(open_clip.get_model_config(name)["embed_dim"]),
        closed_words=name in project_models(),
    )
    model = ClipModel(name=name, tower=tower, text=text)
    if path is not None:
        named = load_clip_weights(model, path)
        logger.info("%s: %d tensors from %s", name, len(named.tensors), path)
    return model.eval()


def load_tower(name: str, weights: str | None = None, *, precision: str = "fp32") -> VisionTower:
    """Build an image tower in eval mode.

    Args:
        name: Model name as open_clip knows it, or one of this project's.
        weights: A pretrained tag, a file with a whole CLIP or an image tower, or None for random
            weights, as of ``load_clip``.
        precision: Number type: fp32, bf16 or auto.

    Returns:
        The tower; its parameters are trainable until frozen.

    Raises:
        ValueError: If the name or the tag is unknown, or the file does not fit.
    """
    _, tower, path = _build(name, weights, precision)
    if path is not None:
        named = load_tower_weights(tower, path)
        logger.info("%s: %d tensors from %s", name, len(named.tensors), path)
    return tower.eval()


def _build(
    name: str, weights: str | None, precision: str
) -> tuple[CLIP | CustomTextCLIP, VisionTower, Path | None]:
    """Build the two towers, and tell the file that is yet to be read."""
    check_name(name)
    if weights is None and is_published(name):
        weights = name
    tag, path = (None, None) if weights is None else find_weights(name, weights)
    clip, settings = _create(name, tag)
    # The image tower is moved out of the model, so that each weight has one owner.
    visual = clip.visual
    del clip.visual
    (red, green, blue), (std_red, std_green, std_blue) = _pixel_statistics(name, settings)
    tower = build_tower(
        visual,
        name=name,
        pixel_mean=(255.0 * red, 255.0 * green, 255.0 * blue),
        pixel_std=(255.0 * std_red, 255.0 * std_green, 255.0 * std_blue),
        precision=precision,
    )
    return clip, tower, path


@own_randomness()
def _create(name: str, tag: str | None) -> tuple[CLIP | CustomTextCLIP, dict[str, Any]]:
    """Build open_clip's model, and tell the pixel statistics of its weights."""
    # Not open_clip.create_model: without a tag it warns of random weights on the root logger, also
    # where a file follows, and it downloads text towers of other libraries.
    config = open_clip.get_model_config(name)
    if "multimodal_cfg" in config:
        raise ValueError(f"{name} is a CoCa with a captioning decoder; choose a CLIP")
    # get_model_config gives a copy, which may be changed.
    kind = CustomTextCLIP if config.pop("custom_text", False) else CLIP
    if "hf_model_name" in config["text_cfg"]:
        check_transformers(name)
        kind = CustomTextCLIP
        config["text_cfg"]["hf_model_pretrained"] = False
    clip = kind(**config)
    if tag is None:
        return clip, {}
    settings, file = fetch_weights(name, tag)
    try:
        open_clip.load_checkpoint(clip, file)
    except RuntimeError as error:
        raise ValueError(f"the weights {tag!r} do not fit {name}: {error}") from error
    return clip, settings


def _pixel_statistics(
    name: str, settings: dict[str, Any]
) -> tuple[Sequence[float], Sequence[float]]:
    """Mean and deviation, 0 to 1: a file of a model whose published weights agree is like them."""
    openai = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    tags = open_clip.list_pretrained_tags_by_model(name)
    known = [settings] if settings else [open_clip.get_pretrained_cfg(name, tag) for tag in tags]
    found = {(tuple(c.get("mean", openai[0])), tuple(c.get("std", openai[1]))) for c in known}
    return found.pop() if len(found) == 1 else openai
