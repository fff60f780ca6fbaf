"""Parts that several methods build from a config; the only readers of the keys they name."""

from detectron2.utils.file_io import PathManager

from clipself_d2.parts.shipped_weights import ShippedWeightsHandler

PathManager.register_handler(ShippedWeightsHandler(), allow_override=True)
