"""Head of the region proposal network with norms, ``MODEL.RPN.HEAD_NAME NormRPNHead``."""

from detectron2.config import CfgNode, configurable
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling.proposal_generator import StandardRPNHead


class NormRPNHead(StandardRPNHead):
    """Detectron2's RPN head with a norm between each 3 x 3 convolution and its ReLU.

    The convolutions then have no bias. All levels share the norm, as they share the weights.

    Args:
        norm: Detectron2's name of the norm; "" is Detectron2's head.
        kwargs: Keyword arguments of ``StandardRPNHead``.

    Reference: F-ViT on OV-LVIS, CLIPSelf, arXiv 2310.01403, section 4.1.
    """

    @configurable
    def __init__(self, *, norm: str = "", **kwargs: object) -> None:
        super().__init__(**kwargs)
        # The parent initialises biases, so norms come after it.
        for conv in self.conv.modules():
            if isinstance(conv, Conv2d) and norm:
                conv.norm = get_norm(norm, conv.out_channels)
                conv.bias = None

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, object]:
        """Read MODEL.RPN, and the norm of MODEL.FPN."""
        return {**super().from_config(cfg, input_shape), "norm": cfg.MODEL.FPN.NORM}
