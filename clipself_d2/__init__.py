"""Open-vocabulary dense prediction with CLIP, as a Detectron2 plugin.

Importing the package registers its backbones, ROI heads, meta-architectures and data sets with
Detectron2. ``clipself_d2.clip``, ``vocabulary`` and ``layers`` work without Detectron2.
"""

import warnings

__version__ = "0.1.0"

try:
    from clipself_d2 import data, distill, modeling  # noqa: F401
except ImportError as error:
    # Not fatal: the doctor, and notebooks with torch alone, start from here too.
    warnings.warn(
        f"nothing is registered with Detectron2 ({error}); run python -m clipself_d2.doctor",
        RuntimeWarning,
        stacklevel=2,
    )
