"""Shapes of a backbone's features that say what there is where one is missing."""

from detectron2.layers import ShapeSpec


class Features(dict[str, ShapeSpec]):
    """A backbone's ``output_shape()``; Detectron2's heads look names up in it."""

    def __missing__(self, name: str) -> ShapeSpec:
        """Raise in place of a bare KeyError."""
        raise ValueError(
            f"a head asks for the feature {name!r}, but the backbone gives {', '.join(self)}; name "
            "some of those in the head's IN_FEATURES (lazy: in_features), or take another "
            "MODEL.BACKBONE.NAME: build_retinanet_clip_vit_fpn_backbone gives p3 to p7, "
            "build_clip_vit_stages_backbone res2 to res5"
        )
