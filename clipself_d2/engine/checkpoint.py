"""Checkpoints that fit the model, and configs whose checkpoint brings the tower."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from fvcore.common.checkpoint import _IncompatibleKeys

from clipself_d2.clip.weights.form import FORM_KEY
from clipself_d2.parts.checkpointer import SafeCheckpointer
from clipself_d2.parts.dense_form import check_forms, forms_of


class StrictCheckpointer(SafeCheckpointer):
    """Detectron2's checkpointer that refuses weights of another model.

    Detectron2 skips parameters whose shape differs and trains or evaluates what is left.
    """

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` with the form in which its image towers are trained.

        Args:
            name: File name without the ending.
            kwargs: Further entries of the file.
        """
        super().save(name, **{FORM_KEY: forms_of(self.model)}, **kwargs)

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        check_forms(self.model, checkpoint.get(FORM_KEY), "MODEL.WEIGHTS")
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        if incompatible.incorrect_shapes:
            name, got, expected = incompatible.incorrect_shapes[0]
            raise ValueError(
                f"the checkpoint's {name} has shape {tuple(got)}, the model's {tuple(expected)}, "
                f"and {len(incompatible.incorrect_shapes) - 1} more differ; it is of another "
                "model: check MODEL.WEIGHTS against MODEL.CLIP.NAME and the --config-file"
            )
        loaded = len(self.model.state_dict()) - len(incompatible.missing_keys)
        if loaded == 0:
            raise ValueError(
                "the checkpoint has no parameter of this model; check MODEL.WEIGHTS (a distilled "
                "image tower goes to MODEL.CLIP.WEIGHTS)"
            )
        super()._log_incompatible_keys(incompatible)


def self_contained(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """Ignore MODEL.CLIP.WEIGHTS where a checkpoint brings the tower with it.

    Args:
        cfg: The whole config.
        resume: Whether the last checkpoint of OUTPUT_DIR, if any, goes before MODEL.WEIGHTS.

    Returns:
        A config for a model that is then filled from the checkpoint.
    """
    # The name is fvcore's, which tells by this file whether there is something to resume.
    resumes = resume and Path(cfg.OUTPUT_DIR, "last_checkpoint").is_file()
    if not cfg.MODEL.WEIGHTS and not resumes:
        return cfg
    return changed(cfg, "MODEL.CLIP.WEIGHTS", "")


def changed(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """Copy a config with another value of a key.

    Args:
        cfg: The whole config.
        key: Dotted name.
        value: Its value.

    Returns:
        The copy, frozen.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg
