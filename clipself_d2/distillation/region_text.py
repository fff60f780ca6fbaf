"""Region-text baseline: region features of a CLIP ViT learn the nouns of their pseudo labels.

Legend: R regions of the batch, K classes, D joint embedding.
"""

import torch
import torch.distributed
from detectron2.config import CfgNode, configurable
from detectron2.utils import comm
from torch import Tensor

from clipself_d2.distillation.base import (
    Item,
    Losses,
    RegionDistiller,
    Scene,
    Towers,
    iteration_generator,
)
from clipself_d2.distillation.build import text_from_config, towers_from_config
from clipself_d2.distillation.losses import federated_bce, sample_classes


class RegionTextDistiller(RegionDistiller):
    """Student that is trained on regions with class names; the original serves the weight ensemble.

    Args:
        towers: Student and teacher, as of ``RegionDistiller``.
        text_KD: Class embeddings; normalised here.
        scale: Multiplier of the cosine, CLIP's exp(logit_scale).
        num_sampled: Classes that a batch is scored against.
        seed: Seed of their draw, which also depends on the iteration.

    Raises:
        ValueError: If the class embeddings are of another width than the towers.

    Reference: the RegionCLIP baseline of CLIPSelf, arXiv 2310.01403, section 4.2. Differs:
    gradients are averaged over processes.
    """

    text_KD: Tensor

    @configurable
    def __init__(
        self,
        *,
        towers: Towers,
        text_KD: Tensor,
        scale: float,
        num_sampled: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(towers=towers)
        if text_KD.shape[1] != self.student.embed_dim:
            raise ValueError(
                f"text embeddings are {text_KD.shape[1]}-d but {self.student.name} has "
                f"{self.student.embed_dim}-d features; check MODEL.VOCABULARY.EMBEDDINGS"
            )
        unit = torch.nn.functional.normalize(text_KD.float(), dim=1)
        self.register_buffer("text_KD", unit, persistent=False)
        self.scale, self.num_sampled, self.seed = scale, num_sampled, seed

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.DISTILL, MODEL.VOCABULARY and the pixel statistics."""
        text_KD, scale = text_from_config(cfg)
        return {
            "towers": towers_from_config(cfg),
            "text_KD": text_KD,
            "scale": scale,
            "num_sampled": cfg.MODEL.DISTILL.SAMPLED_CLASSES,
            "seed": max(cfg.SEED, 0),
        }

    def compute_losses(
        self, items: list[Item], student_RD: Tensor, scene: Scene | None = None
    ) -> Losses:
        """Compare the student's regions with the embeddings of their classes.

        Args:
            items: Items with ``region_classes`` (Ri,) indices of the vocabulary.
            student_RD: (R, D) unit-norm region features.
            scene: Not read.

        Returns:
            ``loss_region_text``.

        Raises:
            ValueError: If an item has no classes, or one is out of range.
        """
        if any("region_classes" not in item for item in items):
            raise ValueError(
                "RegionTextDistiller learns from annotated regions; set INPUT.REGIONS.SOURCE to "
                "labels and DATASETS.TRAIN to a detection data set"
            )
        # On the CPU, where the loader has them: asking a GPU for a number would wait for it.
        label_R: Tensor = torch.cat([item["region_classes"] for item in items])  # type: ignore[misc]
        if len(label_R) and int(label_R.max()) >= len(self.text_KD):
            raise ValueError(
                f"a region has class {int(label_R.max())}, but there are {len(self.text_KD)} text "
                "embeddings; check MODEL.VOCABULARY against DATASETS.TRAIN"
            )
        sampled_S = sample_classes(
            self._classes_of_all(label_R),
            len(self.text_KD),
            self.num_sampled,
            iteration_generator(self.seed),
        )
        label_R, sampled_S = self.moved(label_R), self.moved(sampled_S)
        losses = federated_bce(student_RD, self.text_KD, label_R, sampled_S, self.scale)
        return {"loss_region_text": losses.sum() / self.mean_count(len(losses))}

    def _classes_of_all(self, label_R: Tensor) -> Tensor:
        """The classes that the batch has in any process."""
        if comm.get_world_size() == 1:
            return label_R
        present_K = torch.zeros(len(self.text_KD), device=self.device)
        present_K[self.moved(label_R)] = 1.0
        torch.distributed.all_reduce(present_K, torch.distributed.ReduceOp.MAX)
        return present_K.nonzero()[:, 0].cpu()
