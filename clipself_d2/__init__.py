"""Open-vocabulary dense prediction with CLIP, as a Detectron2 plugin.

Importing the package registers its backbones, ROI heads, meta-architectures and data sets with
Detectron2, and adds its yaml keys to those of ``get_cfg()``. ``clipself_d2.clip``, ``vocabulary``
and ``layers`` work without Detectron2.
"""

import sys
import warnings

__version__ = "0.1.0"

# The doctor has to speak where the registrations cannot be imported.
if "clipself_d2.doctor" not in sys.orig_argv:
    try:
        from clipself_d2 import backbones, data, detection, distillation, parts, referring
        from clipself_d2.config import extend_defaults

        extend_defaults()
    except ImportError as error:
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
