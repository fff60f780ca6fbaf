"""Open-vocabulary dense prediction with CLIP, as a Detectron2 plugin."""

__version__ = "0.1.0"
