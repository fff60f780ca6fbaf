"""The form of dense features, as a config asks for it and as weights were trained in."""

import logging

from torch import nn

from clipself_d2.clip import VisionTower
from clipself_d2.clip.towers.attention import AttentionPlan
from clipself_d2.clip.towers.dense_form import DenseForm
from clipself_d2.clip.weights.form import Form, differences

logger = logging.getLogger(__name__)

_NAME, _FORM = "MODEL.CLIP.NAME", "MODEL.CLIP.DENSE_FORM"


def form_of(tower: VisionTower) -> Form:
    """Tell the form in which a tower gives dense features.

    Args:
        tower: The tower; ``build_image_tower`` has told it the statistics of its pixels.

    Returns:
        Values by key of the config; files that lack one are not compared in it.
    """
    plan = getattr(tower, "attention", AttentionPlan())
    return {
        _NAME: tower.name,
        _FORM: str(tower.dense_form),
        "MODEL.CLIP.WINDOW_SIZE": plan.window_size,
        "MODEL.CLIP.GLOBAL_BLOCKS": list(plan.global_blocks),
        **getattr(tower, "pixel_form", {}),
    }


def forms_of(model: nn.Module) -> dict[str, Form]:
    """Collect the forms of the image towers in a model whose dense form has been set.

    Args:
        model: A model, or a tower.

    Returns:
        Each form by the name of the tower in the model; a teacher of crops has none.
    """
    towers = ((n, m) for n, m in model.named_modules() if isinstance(m, VisionTower))
    return {name: form_of(tower) for name, tower in towers if "dense_form" in vars(tower)}


def set_form(tower: VisionTower, form: DenseForm | str, *, any_form: bool = False) -> None:
    """Set the dense form of a tower, and hold it against that of the file it was loaded from.

    Args:
        tower: The tower.
        form: The form, or its name.
        any_form: Whether weights of another form may be run in this one.

    Raises:
        ValueError: If the tower cannot have the form, or its file is of another.
    """
    tower.set_dense_form(form)
    tower.any_form = any_form
    if tower.trained_form is not None:
        check_form(tower, tower.trained_form, "the image tower's file")


def check_forms(model: nn.Module, stored: dict[str, Form] | None, key: str) -> None:
    """Hold the forms of a model against those of a checkpoint.

    Args:
        model: The model that is filled.
        stored: Forms as of ``forms_of``; None where the checkpoint does not say.
        key: Key of the checkpoint.

    Raises:
        ValueError: If a tower is of another CLIP or dense form.
    """
    for name, tower in model.named_modules():
        if isinstance(tower, VisionTower) and "dense_form" in vars(tower):
            check_form(tower, (stored or {}).get(name), key)


def check_form(tower: VisionTower, stored: Form | None, key: str) -> None:
    """Hold the form of a tower against that of its weights.

    Another CLIP is refused, and another dense form unless the tower takes any; the rest is said.

    Args:
        tower: The tower with its form.
        stored: Form of the weights; None where they do not say.
        key: Key of the weights.

    Raises:
        ValueError: If the weights are of another CLIP or dense form.
    """
    wanted = form_of(tower)
    if stored is None or _FORM not in stored:
        logger.info(
            "%s does not say in which dense form it was trained; %s is taken", key, wanted[_FORM]
        )
    stored = stored or {}
    found = differences(stored, wanted)
    if _NAME in found:
        raise ValueError(
            f"{key} is of {stored[_NAME]}, but {_NAME} is {wanted[_NAME]}; set {_NAME} to it"
        )
    if _FORM in found and not tower.any_form:
        raise ValueError(
            f"{key} was trained in the dense form {stored[_FORM]}, but {_FORM} is {wanted[_FORM]}, "
            f"in which it scores otherwise; set {_FORM} (LazyConfig: dense_form) to the former, or "
            "MODEL.CLIP.ANY_FORM (any_form) to True if the change is meant"
        )
    if found:
        logger.warning(
            "%s was trained in another form of dense features, and will score otherwise: %s; set "
            "the keys to the former values unless the change is meant",
            key,
            ", ".join(f"{name} was {stored[name]}, is {wanted[name]}" for name in found),
        )
