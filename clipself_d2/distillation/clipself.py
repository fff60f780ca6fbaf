"""CLIPSelf: a CLIP ViT learns region features from its own embeddings of image crops.

Legend: R regions of the batch, D joint embedding.
"""

from detectron2.config import CfgNode, configurable
from torch import Tensor

from clipself_d2.distillation.base import Item, Losses, Scene, Towers
from clipself_d2.distillation.build import towers_from_config
from clipself_d2.distillation.losses import cosine_distances
from clipself_d2.distillation.term_distiller import TermDistiller
from clipself_d2.distillation.terms import CropTerm


class CLIPSelfDistiller(TermDistiller):
    """The distillation of one term: one minus the cosine of each region and its crop.

    Args:
        towers: Student and teacher, as of ``RegionDistiller``.
        image_loss_weight: Weight of the loss between the student's and the teacher's embeddings of
            the whole picture, against the loss of global accuracy; 0 leaves it out.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2. Differs: the mean over regions is that of
    all processes together, and gradients are averaged over processes (the published code calls the
    module behind DistributedDataParallel, which leaves its ranks unsynchronised). The image-level
    loss is an addition, 0 in the published recipes.
    """

    @configurable
    def __init__(self, *, towers: Towers, image_loss_weight: float = 0.0) -> None:
        super().__init__(towers=towers, terms=(CropTerm(),))
        self.image_loss_weight = image_loss_weight

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.DISTILL and the pixel statistics."""
        return {"towers": towers_from_config(cfg)}

    def compute_losses(
        self, items: list[Item], student_RD: Tensor, scene: Scene | None = None
    ) -> Losses:
        """Compare the student's regions with the teacher's crops.

        Args:
            items: Items with ``crops``, and ``whole`` for the image-level loss.
            student_RD: (R, D) unit-norm region features.
            scene: The rest of what the student saw and made.

        Returns:
            ``loss_cosine``, and ``loss_image`` where it has a weight.
        """
        losses = super().compute_losses(items, student_RD, scene)
        if self.image_loss_weight > 0:
            losses["loss_image"] = self.image_loss_weight * self._image_loss(items)
        return losses

    def _image_loss(self, items: list[Item]) -> Tensor:
        pixels = self.preprocess_crops(items, "whole")
        student = self.student.forward_image(pixels)
        return cosine_distances(student, self.teacher.forward_image(pixels).detach()).mean()
