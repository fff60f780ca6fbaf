"""Checkpoints that fit the model, are whole, and go on with the run that wrote them."""

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from fvcore.common.checkpoint import _IncompatibleKeys
from torch import nn

from clipself_d2.clip.weights.form import FORM_KEY
from clipself_d2.parts.checkpointer import SafeCheckpointer
from clipself_d2.parts.dense_form import check_forms, forms_of
from clipself_d2.parts.words import shortened
from clipself_d2.runs.checkpoints import check_finite, flat_keys, newest_of_run, warn_of_changes
from clipself_d2.runs.folder import (
    WholeFiles,
    begin_run,
    checkpoints_of,
    claim_folder,
    name_run,
    read_run,
)

# Endings of parameters that a model may be scored without: they say nothing about what it learned.
MAY_BE_MISSING = ("num_batches_tracked", "pixel_mean", "pixel_std")


class StrictCheckpointer(SafeCheckpointer):
    """Detectron2's checkpointer that keeps, and takes, nothing but whole checkpoints of one run.

    Detectron2 writes in place, skips parameters whose shape differs, and trains or evaluates what
    is left. Here files appear under their names when they are whole, weights of another model,
    weights that are not finite and, unless a training begins with them, half a model are refused.

    Args:
        model: The model, not wrapped.
        save_dir: Folder of the checkpoints.
        config: Config of the run, of yacs or omegaconf, which goes into the checkpoints.
        options: As for Detectron2's; with ``trainer`` the checkpointer is one of a training.
    """

    def __init__(
        self, model: nn.Module, save_dir: str = "", *, config: Any = None, **options: Any
    ) -> None:
        super().__init__(model, save_dir, **options)
        plain: Any = vars(self)["path_manager"]
        self.path_manager = WholeFiles(plain)
        self._config = flat_keys({} if config is None else config)
        self._run, self._source, self._may_be_partial = "", "", False

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``<name>.pth`` and tag it as the last.

        With the weights go the run's id and config, and the form in which image towers are trained.
        A ValueError says that weights are not finite; nothing is written then.
        """
        if self.save_dir and self.save_to_disk:
            check_finite(
                self.model,
                f"{name} is not saved: the training has diverged; lower the learning rate or clip "
                "gradients, and go on from the last whole checkpoint with --resume",
            )
            self._run = self._run or read_run(self.save_dir) or name_run(self.save_dir)
            kwargs["run"] = {"id": self._run, "config": self._config}
        super().save(name, **{FORM_KEY: forms_of(self.model)}, **kwargs)

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Go on from the newest whole checkpoint of the folder, or begin with a file's weights.

        A ``path`` of "" keeps the weights that the model has. A ValueError says that no checkpoint
        of the folder is whole, or the newest is of another run.
        """
        trains = "trainer" in self.checkpointables and self.save_to_disk
        if trains and self.save_dir:
            claim_folder(self.save_dir)
        found = newest_of_run(self.save_dir) if resume and comm.is_main_process() else None
        if trains and found is not None:
            self._run = name_run(self.save_dir, found.run)
            self.tag_last_checkpoint(found.path.name)
        # All processes take what the main one has found: a folder may be seen late elsewhere.
        last = comm.all_gather("" if found is None else str(found.path))[0]
        if not last:
            content = self.load(path, checkpointables=[])
            if trains and self.save_dir:
                self._run = begin_run(self.save_dir)
            return content
        content = self.load(last)
        warn_of_changes(content.get("run", {}).get("config", {}), self._config)
        return content

    def load(self, path: str, checkpointables: list[str] | None = None) -> dict[str, Any]:
        """Load a file of this model's; "" loads nothing, ``checkpointables`` None all.

        A FileNotFoundError or ValueError says that the file is missing, of another model,
        of half a model that does not begin a training, or not finite.
        """
        if path and "://" not in path and not Path(path.partition("?")[0]).is_file():
            raise FileNotFoundError(f"the weights {path} are not there; check MODEL.WEIGHTS")
        self._source = path
        self._may_be_partial = "trainer" in self.checkpointables and checkpointables == []
        content: dict[str, Any] = super().load(path, checkpointables)
        if path:
            check_finite(self.model, f"{path} is of a training that has diverged; take another")
        return content

    def _load_model(self, checkpoint: Any) -> _IncompatibleKeys:
        check_forms(self.model, checkpoint.get(FORM_KEY), "MODEL.WEIGHTS")
        return super()._load_model(checkpoint)

    def _log_incompatible_keys(self, incompatible: _IncompatibleKeys) -> None:
        if incompatible.incorrect_shapes:
            name, got, expected = incompatible.incorrect_shapes[0]
            raise ValueError(
                f"the checkpoint's {name} has shape {tuple(got)}, the model's {tuple(expected)}, "
                "so it is of another one: check MODEL.WEIGHTS, MODEL.CLIP.NAME and --config-file"
            )
        loaded = len(self.model.state_dict()) - len(incompatible.missing_keys)
        if loaded == 0:
            raise ValueError(
                "the checkpoint has no parameter of this model; check MODEL.WEIGHTS (a distilled "
                "image tower goes to MODEL.CLIP.WEIGHTS)"
            )
        lacking = [key for key in incompatible.missing_keys if not key.endswith(MAY_BE_MISSING)]
        if lacking and not self._may_be_partial:
            raise ValueError(
                f"{self._source} is half a model: it lacks {len(lacking)} parameters "
                f"({shortened(lacking, 3)}); give the whole model's checkpoint, and a distilled "
                "image tower to MODEL.CLIP.WEIGHTS"
            )
        super()._log_incompatible_keys(incompatible)


def self_contained(cfg: CfgNode, *, resume: bool = False) -> CfgNode:
    """Ignore MODEL.CLIP.WEIGHTS where a checkpoint brings the tower with it."""
    resumes = resume and bool(checkpoints_of(cfg.OUTPUT_DIR))
    if not cfg.MODEL.WEIGHTS and not resumes:
        return cfg
    return changed(cfg, "MODEL.CLIP.WEIGHTS", "")


def changed(cfg: CfgNode, key: str, value: object) -> CfgNode:
    """Copy a config with another value of a dotted key; the copy is frozen."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.merge_from_list([key, value])
    cfg.freeze()
    return cfg
