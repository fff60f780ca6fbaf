"""The front door to CLIP models: open_clip's and the embedded one."""

import difflib
import json
import logging
import math
from functools import cache
from pathlib import Path

import open_clip
import open_clip.factory
import torch
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from clipself_d2.clip.bpe import read_words
from clipself_d2.clip.checkpoint import load_clip_weights, load_tower_weights
from clipself_d2.clip.eva_tower import EvaTower
from clipself_d2.clip.text import TextEncoder
from clipself_d2.clip.towers import VisionTower
from clipself_d2.clip.vit_tower import OpenClipViTTower

logger = logging.getLogger(__name__)

_FOLDER = Path(__file__).parent
_CONFIGS = _FOLDER / "model_configs"
# Weights in this package, by model name and pretrained tag.
_BUNDLED = {("ViT-Ti-8-emoji", "emoji"): _FOLDER / "weights" / "ViT-Ti-8-emoji.safetensors"}
_WEIGHT_ENDINGS = (".pt", ".pth", ".bin", ".safetensors")


class ClipModel(nn.Module):
    """A CLIP, as an image tower and a text tower.

    Args:
        name: Model name as open_clip knows it.
        tower: Image tower.
        text: Text tower.
        logit_scale: CLIP's multiplier of the cosine, about 100.
    """

    def __init__(
        self, *, name: str, tower: VisionTower, text: TextEncoder, logit_scale: float
    ) -> None:
        super().__init__()
        self.name = name
        self.tower = tower
        self.text = text
        self.logit_scale = logit_scale

    def open_clip_state(self) -> dict[str, Tensor]:
        """Collect all weights by open_clip's names.

        Returns:
            Tensors of both towers and ``logit_scale``.
        """
        state = {**self.tower.state_dict(), **self.text.model.state_dict()}
        return {**state, "logit_scale": torch.tensor(math.log(self.logit_scale))}


def load_clip(name: str, weights: str | None = None, *, precision: str = "fp32") -> ClipModel:
    """Build a CLIP.

    Args:
        name: Name of an open_clip model, such as ViT-B-16-quickgelu, EVA02-B-16 or the embedded
            ViT-Ti-8-emoji.
        weights: A pretrained tag of open_clip, ``emoji`` for the embedded model, or a file with
            the whole CLIP; None leaves random weights.
        precision: Number type of the image tower's arithmetic: fp32, bf16 or auto.

    Returns:
        The model in evaluation mode on the CPU.

    Raises:
        ValueError: If the name or the tag is unknown, or the file is of another model.
        FileNotFoundError: If the file is missing.
    """
    model = _create(name, weights)
    pixels = model.visual.preprocess_cfg
    mean, std = (tuple(255.0 * value for value in pixels[key]) for key in ("mean", "std"))
    tower = wrap_tower(model.visual, name, mean, std, precision)
    text = TextEncoder(
        model=model,
        tokenizer=open_clip.get_tokenizer(name),
        embed_dim=tower.embed_dim,
        known_words=_known_words(name),
    )
    scale = float(model.logit_scale.detach().exp())
    return ClipModel(name=name, tower=tower, text=text, logit_scale=scale).eval()


def load_tower(
    name: str,
    pretrained: str | None = None,
    *,
    weights: str | None = None,
    precision: str = "fp32",
) -> VisionTower:
    """Build the image tower of a CLIP.

    Args:
        name: Name of an open_clip model.
        pretrained: Tag or file of the whole CLIP, as for ``load_clip``.
        weights: A file with an image tower that replaces that of ``pretrained``, such as a
            distilled student.
        precision: Number type of its arithmetic.

    Returns:
        The tower in evaluation mode on the CPU.

    Raises:
        ValueError: As ``load_clip``, or if ``weights`` is of another tower.
        FileNotFoundError: If a file is missing.
    """
    tower = load_clip(name, pretrained or None, precision=precision).tower
    if weights:
        report = load_tower_weights(tower, weights)
        logger.info("loaded %d tensors of %s from %s", report.num_tensors, name, report.path)
    return tower


def wrap_tower(
    visual: nn.Module,
    name: str,
    pixel_mean: tuple[float, ...],
    pixel_std: tuple[float, ...],
    precision: str = "fp32",
) -> VisionTower:
    """Choose the tower class for an image module of open_clip.

    Args:
        visual: ``model.visual`` of an open_clip model.
        name: Its name.
        pixel_mean: RGB mean, 0 to 255.
        pixel_std: RGB deviation.
        precision: Number type of its arithmetic.

    Returns:
        The tower.

    Raises:
        ValueError: If there is no tower for the module.
    """
    classes = {VisionTransformer: OpenClipViTTower, TimmModel: EvaTower}
    if type(visual) not in classes:
        raise ValueError(
            f"{name} has an image tower of type {type(visual).__name__}; dense features are "
            "defined for open_clip's ViT and for EVA02"
        )
    return classes[type(visual)](
        visual=visual,
        name=name,
        pixel_mean=pixel_mean,
        pixel_std=pixel_std,
        precision=precision,
    )


@cache
def register_model_configs() -> None:
    """Make the model configs of this package known to open_clip, once."""
    for path in sorted(_CONFIGS.glob("*.json")):
        config = json.loads(path.read_text(encoding="utf-8"))
        options = config["text_cfg"].get("tokenizer_kwargs", {})
        if "bpe_path" in options:
            options["bpe_path"] = str(_CONFIGS / options["bpe_path"])
        # add_model_config reads files, and a file cannot know where this package is installed.
        open_clip.factory._MODEL_CONFIGS[path.stem] = config


def _known_words(name: str) -> frozenset[str] | None:
    options = open_clip.get_model_config(name)["text_cfg"].get("tokenizer_kwargs", {})
    path = Path(options.get("bpe_path", ""))
    return read_words(path) if path.parent == _CONFIGS else None


def _create(name: str, weights: str | None) -> nn.Module:
    register_model_configs()
    known = open_clip.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, 3, 0.4)
        raise ValueError(
            f"open_clip has no model {name!r}; MODEL.CLIP.NAME could be {' or '.join(close)}"
        )
    if weights is None:
        return open_clip.create_model(name, load_weights=False)
    bundled = _BUNDLED.get((name, weights))
    if bundled is None and not _is_file_name(weights):
        tags = open_clip.list_pretrained_tags_by_model(name)
        own = [tag for model, tag in _BUNDLED if model == name]
        if open_clip.pretrained.get_pretrained_cfg(name, weights):
            return open_clip.create_model(name, pretrained=weights)
        raise ValueError(
            f"{weights!r} is neither a file nor a pretrained tag of {name}; its tags are "
            f"{tags + own}, set one as MODEL.CLIP.PRETRAINED"
        )
    model = open_clip.create_model(name, load_weights=False)
    report = load_clip_weights(model, name, bundled or weights)
    logger.info("loaded %d tensors of %s from %s", report.num_tensors, name, report.path)
    return model


def _is_file_name(weights: str) -> bool:
    return weights.endswith(_WEIGHT_ENDINGS) or "/" in weights or Path(weights).is_file()
