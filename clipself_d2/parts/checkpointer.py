"""Detectron2's checkpointer on this project's one reader of weights."""

from collections.abc import Mapping
from typing import Any

from detectron2.checkpoint import DetectionCheckpointer

from clipself_d2.clip.weights.form import FORM_KEY
from clipself_d2.clip.weights.reading import read_weights_file
from clipself_d2.parts.shipped_weights import TOWER_KEY, shipped_tower


class SafeCheckpointer(DetectionCheckpointer):
    """Detectron2's checkpointer whose files cannot run code.

    Detectron2 unpickles files ending in .pkl as they are. Here those of its model zoo, of Caffe2
    and of pycls keep their meaning; safetensors files and TorchScript archives load as well.
    """

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith((".pkl", ".pyth")):
            return super()._load_file(filename)
        content = self._torch_load(filename)
        if filename.endswith(".pyth"):
            if "model_state" not in content:
                raise ValueError(f"{filename} has no model_state, which files of pycls have")
            author, left_out, weights = "pycls", "num_batches_tracked", content["model_state"]
        elif "model" in content and "__author__" in content:
            self.logger.info("Reading a file from %r", content["__author__"])
            return content
        else:
            author, left_out, weights = "Caffe2", "_momentum", content.get("blobs", content)
        kept = {name: value for name, value in weights.items() if not name.endswith(left_out)}
        return {"model": kept, "__author__": author, "matching_heuristics": True}

    def _torch_load(self, f: str) -> dict[str, Any]:
        content = read_weights_file(f)
        if not isinstance(content, Mapping) or not content:
            raise ValueError(f"{f} holds {type(content).__name__}, expected named tensors")
        if TOWER_KEY in content:
            # Names of towers are the keys of their forms; of a file without them the strict load
            # says what is missing.
            tower = shipped_tower(str(content[TOWER_KEY]), dict(content.get(FORM_KEY) or {}))
            return {**content, "model": {**content["model"], **tower}}
        return dict(content)
