"""Types of flags, whose errors argparse reports; they lie where torch is not imported."""

from clipself_d2_cli.flags import count, device, positive, real, share, whole

__all__ = ["count", "device", "positive", "real", "share", "whole"]
