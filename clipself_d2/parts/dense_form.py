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
    """Tell, by key of the config, the form in which a tower gives dense features.

    Files that lack one are not compared in it.
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
    """Collect the forms of the image towers whose dense form has been set, by name in a model.

    A teacher of crops has none.
    """
    towers = ((n, m) for n, m in model.named_modules() if isinstance(m, VisionTower))
    return {name: form_of(tower) for name, tower in towers if "dense_form" in vars(tower)}


def set_form(tower: VisionTower, form: DenseForm | str, *, any_form: bool = False) -> None:
    """Set the dense form of a tower, and hold it against that of the file it was loaded from.

    ``any_form`` lets weights of another form be run in this one.
    """
    tower.set_dense_form(form)
    tower.any_form = any_form
    if tower.trained_form is not None:
        check_form(tower, tower.trained_form, "the image tower's file")


def check_forms(model: nn.Module, stored: dict[str, Form] | None, key: str) -> None:
    """Hold the forms of a model against those of a checkpoint, as of ``forms_of``, under a key."""
    for name, tower in model.named_modules():
        if isinstance(tower, VisionTower) and "dense_form" in vars(tower):
            check_form(tower, (stored or {}).get(name), key)


def check_form(tower: VisionTower, stored: Form | None, key: str) -> None:
    """Hold the form of a tower against that of its weights, or None where they do not say.

    A ValueError refuses another CLIP, and another dense form unless the tower takes any; the rest
    is said.
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
            f"{key} was trained in the dense form {stored[_FORM]}, but {_FORM} is {wanted[_FORM]}; "
            "set it (dense_form) to the former, or MODEL.CLIP.ANY_FORM (any_form) if this is meant"
        )
    if found:
        changes = ", ".join(f"{name} was {stored[name]}, is {wanted[name]}" for name in found)
        remedy = "set the keys to the former values unless the change is meant"
        logger.warning(
            "%s was trained in another form of dense features: %s; %s", key, changes, remedy
        )
