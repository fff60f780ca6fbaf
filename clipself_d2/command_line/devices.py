"""Where models run: the device of a config against those of the machine."""

import logging

import torch

logger = logging.getLogger(__name__)


def find_device(device: str, key: str, *, is_asked: bool) -> str:
    """Check a device; a config's cuda becomes cpu on a machine without a GPU.

    Not so where the command line asked for it, nor are unknown devices: a ValueError names the
    ``key``.
    """
    try:
        kind = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"{key} is {device!r}, no device of torch; set {key} to cpu") from error
    if kind.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (kind.index or 0) < count:
            return device
        if count or is_asked:
            raise ValueError(
                f"{key} is {device}, but torch finds {count} NVIDIA GPUs; set {key} to "
                f"{'cuda' if count else 'cpu'}"
            )
        logger.warning("%s is %s, but there is no NVIDIA GPU here; cpu is used", key, device)
        return "cpu"
    if kind.type != "cpu":
        try:
            torch.zeros(1, device=kind).tolist()
        except (RuntimeError, NotImplementedError, AssertionError, ImportError) as error:
            raise ValueError(f"{key} is {device}, which fails here; set {key} to cpu") from error
    return device
