"""Files of precomputed proposals, checked before Detectron2 unpickles them."""

from typing import Any

from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager

from clipself_d2.clip.weights.plain_pickle import ARRAYS, Names, read_plain_pickle

# Some files hold the enumeration itself, others its number.
_NAMES: Names = {**ARRAYS, ("detectron2.structures.boxes", "BoxMode"): int}
# Names of Detectron2, and of Detectron before it.
_KEYS = (("ids", "indexes"), ("boxes",), ("objectness_logits", "scores"))
_WANTED = ", ".join(names[0] for names in _KEYS)


def check_proposal_files(cfg: CfgNode, split: str) -> None:
    """Refuse proposal files that hold more than arrays; Detectron2 would run what they ask for.

    Raises a FileNotFoundError or ValueError for DATASETS.PROPOSAL_FILES_TRAIN or _TEST by
    ``split``.
    """
    if not cfg.MODEL.LOAD_PROPOSALS:
        return
    key = f"DATASETS.PROPOSAL_FILES_{split}"
    for file in cfg.DATASETS[f"PROPOSAL_FILES_{split}"]:
        try:
            content = read_plain_pickle(PathManager.get_local_path(file), _NAMES)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"{file} of {key} does not exist") from error
        except ValueError as error:
            raise ValueError(
                f"{error}; {key} takes pickles of {_WANTED} by name, arrays and numbers alone"
            ) from error
        _check_parts(content, file, key)


def _check_parts(content: Any, file: str, key: str) -> None:
    if not isinstance(content, dict):
        raise ValueError(f"{file} of {key} holds a {type(content).__name__}; expected {_WANTED}")
    parts = [next((content[name] for name in names if name in content), None) for names in _KEYS]
    lengths = [len(part) if isinstance(part, list) else None for part in parts]
    if None in lengths or len(set(lengths)) != 1:
        raise ValueError(
            f"{file} of {key} has {', '.join(map(str, content)) or 'nothing'}; expected lists "
            f"{_WANTED}, one entry for each image"
        )
