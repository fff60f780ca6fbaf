"""Open-vocabulary dense prediction with CLIP, as a Detectron2 plugin.

Importing the package registers its backbones, ROI heads, meta-architectures and data sets with
Detectron2, and adds its yaml keys to those of ``get_cfg()``. ``clipself_d2.clip``, ``vocabulary``
and ``layers`` work without Detectron2.
"""

import warnings

__version__ = "0.1.0"


def _is_ours(error: Exception) -> bool:
    """Tell whether an import failed in this package, not in one that it needs."""
    if isinstance(error, ModuleNotFoundError):
        return (error.name or "").partition(".")[0] == __name__
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    module = frame.tb_frame.f_globals.get("__name__", "") if frame else ""
    return str(module).partition(".")[0] == __name__


# Of libraries that others import, and nobody here can act upon.
_UPSTREAM = (r"pkg_resources is deprecated", r"`torch\.jit\.\w+` is deprecated")

try:
    with warnings.catch_warnings():
        for _text in _UPSTREAM:
            warnings.filterwarnings("ignore", message=_text)
        from clipself_d2 import (
            backbones,
            data,
            detection,
            distillation,
            parts,
            referring,
            segmentation,
        )
        from clipself_d2.config import extend_defaults

        extend_defaults()
except (AttributeError, ImportError, OSError, RuntimeError) as error:
    # ``clipself_d2.clip`` and the doctor work where Detectron2 is missing or broken.
    if _is_ours(error):
        raise
    warnings.warn(
        f"nothing is registered with Detectron2 ({error}); run python -m clipself_d2.doctor",
        RuntimeWarning,
        stacklevel=2,
    )


def __getattr__(name: str) -> object:
    # The predictor needs the engine, which not every import of the package should pay for.
    if name == "OpenVocabPredictor":
        from clipself_d2.apps.predict.predictor import OpenVocabPredictor

        return OpenVocabPredictor
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
