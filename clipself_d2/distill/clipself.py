"""CLIPSelf: a CLIP ViT learns region features from its own embeddings of image crops.

Legend: N images, R regions of the batch, D joint embedding, H W pixels.
"""

import copy
from collections.abc import Sequence

import torch
import torch.distributed
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor, nn

from clipself_d2.clip import VisionTower, load_tower
from clipself_d2.distill.losses import constant_prediction_loss, cosine_distances
from clipself_d2.layers.region_pool import mask_embeddings, roi_embeddings

Item = dict[str, object]
# Crops that the teacher embeds at once.
TEACHER_BATCH = 256


@META_ARCH_REGISTRY.register()
class CLIPSelfDistiller(nn.Module):
    """Student and frozen teacher of one CLIP; returns losses in training, embeddings otherwise.

    Args:
        student: Tower that is trained.
        teacher: Tower of the same width, frozen here and always in evaluation mode.
        pixel_mean: RGB mean, 0 to 255.
        pixel_std: RGB deviation.
        trainable_blocks: Number of the student's last blocks that are trained.
        train_embedding: Whether its patch embedding, positions and outer norms are trained too.
        square_size: Side to which student images are padded, px; 0 pads to the largest of the
            batch.

    Raises:
        ValueError: If the towers' embeddings differ in width.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2. Differs: the mean over regions is that of
    all processes together, and gradients are averaged over processes (the published code calls the
    module behind DistributedDataParallel, which leaves its ranks unsynchronised).
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    @configurable
    def __init__(
        self,
        *,
        student: VisionTower,
        teacher: VisionTower,
        pixel_mean: Sequence[float],
        pixel_std: Sequence[float],
        trainable_blocks: int,
        train_embedding: bool = False,
        square_size: int = 0,
    ) -> None:
        super().__init__()
        if student.embed_dim != teacher.embed_dim:
            raise ValueError(
                f"student embeddings are {student.embed_dim}-d, the teacher's "
                f"{teacher.embed_dim}-d; MODEL.CLIP.WEIGHTS and PRETRAINED must be of one CLIP"
            )
        self.student = student
        self.teacher = teacher.eval()
        self.teacher.freeze()
        self.student.unlock(trainable_blocks, everything=train_embedding)
        self.square_size = square_size
        for name, values in (("pixel_mean", pixel_mean), ("pixel_std", pixel_std)):
            value = torch.tensor(list(values), dtype=torch.float32).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, object]:
        """Read MODEL.CLIP, MODEL.DISTILL and the pixel statistics."""
        clip, distill = cfg.MODEL.CLIP, cfg.MODEL.DISTILL
        teacher = load_tower(clip.NAME, clip.PRETRAINED or None, precision=clip.PRECISION)
        if clip.WEIGHTS:
            student = load_tower(clip.NAME, clip.WEIGHTS, precision=clip.PRECISION)
        else:
            student = copy.deepcopy(teacher)
        return {
            "student": student,
            "teacher": teacher,
            "pixel_mean": cfg.MODEL.PIXEL_MEAN,
            "pixel_std": cfg.MODEL.PIXEL_STD,
            "trainable_blocks": distill.TRAINABLE_BLOCKS,
            "train_embedding": distill.TRAIN_EMBEDDING,
            "square_size": distill.IMAGE_SIZE if distill.PAD_TO_SQUARE else 0,
        }

    @property
    def device(self) -> torch.device:
        """Where the model lives."""
        return self.pixel_mean.device

    def train(self, mode: bool = True) -> "CLIPSelfDistiller":
        """Switch the student's mode; the teacher stays in evaluation mode.

        Args:
            mode: Whether to train.

        Returns:
            Self.
        """
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, batched_inputs: list[Item]) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Distil, or embed regions.

        Args:
            batched_inputs: Items of ``DistillMapper`` or ``RegionMapper``: ``image`` (3, H, W)
                uint8 RGB, ``boxes`` (Ri, 4) XYXY px of the image, ``crops`` (Ri, 3, s, s) uint8,
                and for scoring ``masks`` (Ri, h, w).

        Returns:
            In training ``{"loss_cosine": scalar}``. Otherwise a dict for each image: ``roi`` and
            ``mask`` (Ri, D), unit-norm, of the student's dense map, and ``crop`` (Ri, D) of the
            teacher.
        """
        images = self.preprocess_images([item["image"] for item in batched_inputs])  # type: ignore[misc]
        boxes = [item["boxes"].to(self.device) for item in batched_inputs]  # type: ignore[attr-defined]
        crops = torch.cat([item["crops"] for item in batched_inputs])  # type: ignore[misc]
        teacher_RD = self.embed_crops(crops)
        dense = self.student.forward_dense(images).embedding
        student_RD = roi_embeddings(dense, boxes, self.student.patch_size)
        if not self.training:
            return self._split(batched_inputs, dense, student_RD, teacher_RD)
        distances = cosine_distances(student_RD, teacher_RD)
        self._log(distances, teacher_RD)
        # Without regions the sum keeps the graph, so that every process has gradients to reduce.
        return {"loss_cosine": distances.sum() / _mean_count(len(distances), self.device)}

    def preprocess_images(self, images: Sequence[Tensor]) -> Tensor:
        """Pad with black at the right and the bottom, then normalise.

        Args:
            images: (3, Hi, Wi) uint8 each.

        Returns:
            (N, 3, H, W) float32.
        """
        patch = self.student.patch_size
        height = self.square_size or max(image.shape[1] for image in images)
        width = self.square_size or max(image.shape[2] for image in images)
        height, width = -(-height // patch) * patch, -(-width // patch) * patch
        batch = torch.zeros(len(images), 3, height, width, device=self.device)
        for canvas, image in zip(batch, images, strict=True):
            canvas[:, : image.shape[1], : image.shape[2]] = image.to(self.device)
        return (batch - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def embed_crops(self, crops: Tensor) -> Tensor:
        """Embed crops with the teacher.

        Args:
            crops: (R, 3, s, s) uint8; R may be 0.

        Returns:
            (R, D) float32, not normalised.
        """
        parts = [torch.zeros(0, self.teacher.embed_dim, device=self.device)]
        for chunk in crops.split(TEACHER_BATCH):
            if len(chunk):
                pixels = (chunk.to(self.device).float() - self.pixel_mean) / self.pixel_std
                parts.append(self.teacher.forward_image(pixels))
        return torch.cat(parts)

    def student_state_dict(self, alpha: float = 1.0) -> dict[str, Tensor]:
        """Mix the student with its teacher.

        Args:
            alpha: Share of the student, in [0, 1].

        Returns:
            Weights by open_clip's names ``visual.*``, ready for MODEL.CLIP.WEIGHTS.

        Raises:
            ValueError: If ``alpha`` is out of range.

        Reference: CLIPSelf's weight ensemble, arXiv 2310.01403, appendix A.1.
        """
        if not 0.0 <= alpha <= 1.0:
            raise ValueError(f"MODEL.DISTILL.ALPHA is {alpha}; it must be in [0, 1]")
        student, teacher = self.student.state_dict(), self.teacher.state_dict()
        if alpha == 1.0:
            return student
        return {key: alpha * student[key] + (1 - alpha) * teacher[key] for key in student}

    @staticmethod
    def _split(
        items: list[Item], dense: Tensor, student_RD: Tensor, teacher_RD: Tensor
    ) -> list[dict[str, Tensor]]:
        counts = [len(item["boxes"]) for item in items]  # type: ignore[arg-type]
        rows = [
            {"roi": roi, "crop": crop}
            for roi, crop in zip(student_RD.split(counts), teacher_RD.split(counts), strict=True)
        ]
        for number, (row, item) in enumerate(zip(rows, items, strict=True)):
            if "masks" in item:
                masks = _fit_grid(item["masks"], dense.shape[2:]).to(dense)  # type: ignore[arg-type]
                row["mask"] = mask_embeddings(dense[number : number + 1], [masks])
        return rows

    @staticmethod
    def _log(distances: Tensor, teacher_RD: Tensor) -> None:
        if has_event_storage():
            storage = get_event_storage()
            storage.put_scalar("distill/num_regions", float(len(distances)))
            storage.put_scalar("distill/constant_loss", constant_prediction_loss(teacher_RD))


def _mean_count(count: int, device: torch.device) -> float:
    """Regions a process on average, so that averaged gradients are those of the joined batch."""
    if comm.get_world_size() == 1:
        return float(max(1, count))
    total = torch.tensor(float(count), device=device)
    torch.distributed.all_reduce(total)
    return max(1.0, float(total)) / comm.get_world_size()


def _fit_grid(masks: Tensor, grid: Sequence[int]) -> Tensor:
    """Pad masks of one image to the grid of the batch."""
    padded = masks.new_zeros(len(masks), *grid)
    padded[:, : masks.shape[1], : masks.shape[2]] = masks
    return padded
