"""Weights that come with the package, by address in MODEL.WEIGHTS: ``clipself_d2://emoji/...``."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iopath.common.file_io import PathHandler
from torch import Tensor

from clipself_d2.clip.weights.reading import read_weights_file

# In a checkpoint: the address of the image tower that it leaves out.
TOWER_KEY = "tower_from"
PREFIX = "clipself_d2://"
FOLDER = Path(__file__).resolve().parents[1] / "model_zoo" / "checkpoints"


class ShippedWeightsHandler(PathHandler):
    """Gives Detectron2's path manager the files, as its own handler gives ``detectron2://``."""

    def _get_supported_prefixes(self) -> list[str]:
        return [PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """Find the file of an address, such as "clipself_d2://emoji/fvit_clipself.pth"."""
        files = _shipped_files()
        if path not in files:
            raise FileNotFoundError(
                f"{path} does not come with the package; these do: {', '.join(files)}"
            )
        return str(files[path])

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        return path in _shipped_files()

    def _open(self, path: str, mode: str = "r", buffering: int = -1, **kwargs: Any) -> Any:
        return Path(self._get_local_path(path)).open(mode, buffering)


def _shipped_files() -> dict[str, Path]:
    """Files by address; a path that leads out of the folder is none of them."""
    files = sorted(FOLDER.rglob("*.pth"))
    return {PREFIX + file.relative_to(FOLDER).as_posix(): file for file in files}


def shipped_tower(address: str, towers: Iterable[str]) -> dict[str, Tensor]:
    """Read the image tower that several models share, by the names it has in a model."""
    file = ShippedWeightsHandler()._get_local_path(address)
    weights = read_weights_file(file)["model"]
    return {f"{name}.{key}": value for name in towers for key, value in weights.items()}
