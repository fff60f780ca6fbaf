"""The form of dense features, as a config asks for it and as weights were trained in."""

import logging

from detectron2.config import CfgNode
from torch import nn

from clipself_d2.clip import VisionTower
from clipself_d2.clip.weights.form import Form, differences

logger = logging.getLogger(__name__)

_NAME = "MODEL.CLIP.NAME"
# A key more is a field more; files that lack it are not compared in it.
FORM_KEYS = (
    _NAME,
    "MODEL.CLIP.DENSE_FORM",
    "MODEL.CLIP.WINDOW_SIZE",
    "MODEL.CLIP.GLOBAL_BLOCKS",
    "MODEL.PIXEL_MEAN",
    "MODEL.PIXEL_STD",
)


def form_from_config(cfg: CfgNode) -> Form:
    """Read the form that a config asks for.

    Args:
        cfg: The whole config.

    Returns:
        The values of ``FORM_KEYS``.
    """
    form: Form = {}
    for key in FORM_KEYS:
        value = cfg
        for part in key.split("."):
            value = value[part]
        form[key] = list(value) if isinstance(value, list | tuple) else value
    return form


def forms_of(model: nn.Module) -> dict[str, Form]:
    """Collect the forms of the image towers that ``build_image_tower`` made.

    Args:
        model: A model, or a tower.

    Returns:
        Each form by the name of the tower in the model.
    """
    towers = ((n, m) for n, m in model.named_modules() if isinstance(m, VisionTower))
    return {name: form for name, tower in towers if (form := getattr(tower, "form", None))}


def check_forms(model: nn.Module, stored: dict[str, Form] | None, key: str) -> None:
    """Hold the forms of a model against those of a checkpoint.

    Args:
        model: The model that is filled.
        stored: Forms as of ``forms_of``; None where the checkpoint does not say.
        key: Key of the checkpoint.

    Raises:
        ValueError: If a tower is of another CLIP.
    """
    for name, wanted in forms_of(model).items():
        check_form(wanted, (stored or {}).get(name), key)


def check_form(wanted: Form, stored: Form | None, key: str) -> None:
    """Hold the form of a tower against that of its weights: another CLIP is refused, the rest said.

    Args:
        wanted: Form of the config.
        stored: Form of the weights; None where they do not say.
        key: Key of the weights.

    Raises:
        ValueError: If the weights are of another CLIP.
    """
    if stored is None:
        logger.info("%s does not say in which form it was trained; the config's is taken", key)
        return
    found = differences(stored, wanted)
    if _NAME in found:
        raise ValueError(
            f"{key} is of {stored[_NAME]}, but {_NAME} is {wanted[_NAME]}; set {_NAME} to it"
        )
    if found:
        logger.warning(
            "%s was trained in another form of dense features, and will score otherwise: %s; set "
            "the keys to the former values unless the change is meant",
            key,
            ", ".join(f"{name} was {stored[name]}, is {wanted[name]}" for name in found),
        )
