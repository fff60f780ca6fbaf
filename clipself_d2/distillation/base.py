"""What all distillers share: a student, the frozen original, and region scoring.

Legend: N images, R regions of the batch, D joint embedding, H W pixels.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed
import torch.nn.functional as F
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import Tensor

from clipself_d2.clip import DenseFeatures, VisionTower
from clipself_d2.data.items import check_items
from clipself_d2.layers import mask_embeddings, resize_crops, resize_longest, roi_embeddings
from clipself_d2.parts.pixels import PixelModel

Item = dict[str, object]
Losses = dict[str, Tensor]
# Command whose loaders draw the regions.
TOOL = "tools/distill_train_net.py"
# Crops that the teacher embeds at once.
TEACHER_BATCH = 256
# Crops that a compiled teacher embeds at once, so that all numbers of regions share one graph.
CROP_STEP = 32


@dataclass(frozen=True, kw_only=True)
class Towers:
    """What every distiller is made of.

    Attributes:
        student: Tower that is trained; what of it is trained, is set already.
        teacher: Its original, or another tower; the distiller freezes it.
        pixel_mean: RGB mean, 0 to 255.
        pixel_std: RGB deviation.
        pad_to_square: Whether student images are padded to the square of the batch's longest side,
            instead of to its largest height and width.
        region_slots: Most regions of an image; those of a batch are filled up to as many for each
            image where the losses mask what is added, so that the shapes of a compiled step do not
            depend on their number. 0 adds none.
    """

    student: VisionTower
    teacher: VisionTower
    pixel_mean: Sequence[float]
    pixel_std: Sequence[float]
    pad_to_square: bool = False
    region_slots: int = 0


@dataclass(frozen=True)
class Scene:
    """What the student made of a batch, for losses that read more than its regions.

    Attributes:
        images: (N, 3, H, W) normalised and padded pixels.
        boxes: (Ri, 4) XYXY px of each image; those that fill up the batch are the last image's.
        dense: The student's dense features.
        sizes: Height and width of each image without its padding, px.
    """

    images: Tensor
    boxes: list[Tensor]
    dense: DenseFeatures
    sizes: list[tuple[int, int]]


class RegionDistiller(PixelModel, ABC):
    """A CLIP tower that is trained, and its frozen original.

    Subclasses define ``compute_losses``; outside training all of them embed regions for
    ``RegionClassificationEvaluator``.

    Args:
        towers: Student, teacher and their pixels.

    Attributes:
        one_clip: Whether student and teacher share one joint embedding and one architecture, so
            that a text is the same to both and their weights can be mixed.
        region_slots: As of ``Towers``, for subclasses whose losses mask the regions added.
    """

    one_clip: bool = True

    def __init__(self, *, towers: Towers) -> None:
        super().__init__(pixel_mean=towers.pixel_mean, pixel_std=towers.pixel_std)
        self.student = towers.student
        self.teacher = towers.teacher.eval()
        self.teacher.freeze()
        self.pad_to_square = towers.pad_to_square
        self.region_slots = 0

    def train(self, mode: bool = True) -> "RegionDistiller":
        """Switch the student's mode; the teacher and all else stay in evaluation mode.

        Args:
            mode: Whether to train.

        Returns:
            Self.
        """
        # nn.Module.train would set every child, the teacher too.
        super().train(False)
        self.training = mode
        self.student.train(mode)
        return self

    def forward(self, batched_inputs: list[Item]) -> Losses | list[dict[str, Tensor]]:
        """Distil, or embed regions.

        Args:
            batched_inputs: Items of ``DistillMapper`` or ``RegionMapper``: ``image`` (3, H, W)
                uint8 RGB, ``boxes`` (Ri, 4) XYXY px of the image, and what the losses need beside
                them; for scoring ``crops``, Ri pictures of uint8, and ``masks`` (Ri, h, w).

        Returns:
            In training the losses. Otherwise a dict for each image: ``roi`` and ``mask`` (Ri, D),
            unit-norm, of the student's dense map, and ``crop`` (Ri, D) of the teacher, where it is
            of the student's CLIP: the class embeddings that both are scored against are its.

        Raises:
            ValueError: If the items are those of another loader.
        """
        check_items(batched_inputs, ("boxes",), self, TOOL)
        fitted = [self._fitted(item) for item in batched_inputs]
        images = self.preprocess_images(fitted)
        boxes = [self.moved(item["boxes"]) for item in batched_inputs]  # type: ignore[arg-type]
        missing = self.region_slots * len(boxes) - sum(map(len, boxes))
        if self.training and missing > 0:
            # Boxes of no size at the corner; their losses are masked.
            boxes[-1] = F.pad(boxes[-1], (0, 0, 0, missing))
        dense = self.student.forward_dense(images)
        student_RD = roi_embeddings(dense.embedding, boxes, self.student.patch_size)
        if self.training:
            sizes = [(image.shape[1], image.shape[2]) for image in fitted]
            scene = Scene(images, boxes, dense, sizes)
            return self.compute_losses(batched_inputs, student_RD, scene)
        return self._split(batched_inputs, dense.embedding, student_RD)

    @abstractmethod
    def compute_losses(
        self, items: list[Item], student_RD: Tensor, scene: Scene | None = None
    ) -> Losses:
        """Compare the student's regions with what they should be.

        Args:
            items: The batch.
            student_RD: (R, D) unit-norm region features of all images, in order; with
                ``region_slots`` those that fill up the batch follow, zeros.
            scene: The rest of what the student saw and made.

        Returns:
            Scalars by name; their sum is minimised.
        """

    def _fitted(self, item: Item) -> Tensor:
        """The student's image; one that comes as it was read is resized here."""
        image: Tensor = item["image"]  # type: ignore[assignment]
        if "longest_side" in item:
            return resize_longest(image, item["longest_side"], self.device)  # type: ignore[arg-type]
        return image

    def preprocess_images(
        self, images: Sequence[Tensor], least: tuple[int, int] = (0, 0)
    ) -> Tensor:
        """Pad with black at the right and the bottom, then normalise.

        Args:
            images: (3, Hi, Wi) uint8 each.
            least: Height and width that the result has at least, px.

        Returns:
            (N, 3, H, W) float32.
        """
        patch = self.student.patch_size
        height = max(least[0], *(image.shape[1] for image in images))
        width = max(least[1], *(image.shape[2] for image in images))
        if self.pad_to_square:
            height = width = max(height, width)
        # Up to whole patches.
        height, width = -(-height // patch) * patch, -(-width // patch) * patch
        batch = torch.zeros(len(images), 3, height, width, device=self.device)
        for canvas, image in zip(batch, images, strict=True):
            canvas[:, : image.shape[1], : image.shape[2]] = self.moved(image)
        return self.normalise(batch)

    def preprocess_crops(self, items: Sequence[Item], key: str) -> Tensor:
        """Join the crops of a batch, resizing those that come as they were cut, and normalise.

        Args:
            items: The batch.
            key: "crops" or "whole".

        Returns:
            (R, 3, s, s) float32; s is that of resized crops, else the teacher's native size.

        Raises:
            ValueError: If an item has no crops.
        """
        if any(key not in item for item in items):
            raise ValueError(
                f"the batch has no {key!r} for {type(self).__name__}; INPUT.REGIONS.SOURCE labels "
                "and rpn give none, and pictures with captions give those of regions only with "
                "MODEL.REGIONCLIP.TEACHER_REGIONS crop"
            )
        values = [item[key] for item in items]
        if isinstance(values[0], Tensor):
            pixels = torch.cat([self.moved(value) for value in values]).float()  # type: ignore[arg-type]
        else:
            pieces = [piece for value in values for piece in value]  # type: ignore[attr-defined]
            pixels = resize_crops(pieces, self.teacher.image_size, self.device)
        return self.normalise(pixels)

    @torch.no_grad()
    def embed_crops(self, items: Sequence[Item], tower: VisionTower | None = None) -> Tensor:
        """Embed the crops of a batch with the teacher.

        Args:
            items: Items with ``crops``.
            tower: Another tower than the teacher.

        Returns:
            (R, D) float32, not normalised.
        """
        tower = tower or self.teacher
        compiled = getattr(tower, "compile_mode", "off") != "off"
        most = CROP_STEP if compiled else TEACHER_BATCH
        # A batch without crops has no chunk to join.
        parts = [torch.zeros(0, self.teacher.embed_dim, device=self.device)]
        for chunk in self.preprocess_crops(items, "crops").split(most):
            if len(chunk):
                added = CROP_STEP - len(chunk) if compiled else 0
                fitted = F.pad(chunk, (0, 0, 0, 0, 0, 0, 0, added)) if added else chunk
                embedded = tower.forward_image(fitted)
                parts.append(embedded[: len(chunk)])
        return torch.cat(parts)

    def loss_weight(self, items: Sequence[Item]) -> float | Tensor:
        """Tell how much a part of a batch counts against its other parts.

        Args:
            items: The part.

        Returns:
            Its number of regions, averaged over all processes.
        """
        return self.mean_count(sum(len(item["boxes"]) for item in items))  # type: ignore[arg-type, misc]

    def mean_count(self, count: int) -> float | Tensor:
        """Average a number of regions over all processes.

        Losses are divided by it, so that averaged gradients are those of the joined batch.

        Args:
            count: Number in this process.

        Returns:
            The mean, at least one over the number of processes; of several a scalar on the device,
            which no process waits for.
        """
        if comm.get_world_size() == 1:
            return float(max(1, count))
        total = torch.full((), float(count), device=self.device)
        torch.distributed.all_reduce(total)
        return total.clamp(min=1.0) / comm.get_world_size()

    def check_share(self, alpha: float) -> None:
        """Raise unless the student can be mixed with its teacher.

        Args:
            alpha: Share of the student, MODEL.DISTILL.STUDENT_SHARE.

        Raises:
            ValueError: If it is below 1 with a teacher of another CLIP.
        """
        if alpha < 1.0 and not self.one_clip:
            raise ValueError(
                f"MODEL.DISTILL.STUDENT_SHARE is {alpha}, but the teacher {self.teacher.name} is "
                f"another CLIP than the student's, {self.student.name}, and their weights cannot "
                "be mixed; set it to 1"
            )

    def student_state_dict(self, alpha: float = 1.0) -> dict[str, Tensor]:
        """Mix the student with its teacher.

        Args:
            alpha: Share of the student, in [0, 1].

        Returns:
            Weights by open_clip's names ``visual.*``, ready for MODEL.CLIP.WEIGHTS.

        Raises:
            ValueError: As ``check_share``.

        Reference: CLIPSelf's weight ensemble, arXiv 2310.01403, appendix A.1.
        """
        self.check_share(alpha)
        student, teacher = self.student.state_dict(), self.teacher.state_dict()
        if alpha == 1.0:
            return student
        # What the original has not, the gate of a dense form, is the student's.
        mixed = {key: alpha * student[key] + (1 - alpha) * teacher[key] for key in teacher}
        return {**student, **mixed}

    def _split(
        self, items: list[Item], dense: Tensor, student_RD: Tensor
    ) -> list[dict[str, Tensor]]:
        counts = [len(item["boxes"]) for item in items]  # type: ignore[arg-type]
        rows = [{"roi": roi} for roi in student_RD.split(counts)]
        if self.one_clip:
            for row, crop in zip(rows, self.embed_crops(items).split(counts), strict=True):
                row["crop"] = crop
        for number, (row, item) in enumerate(zip(rows, items, strict=True)):
            if "masks" in item:
                masks: Tensor = item["masks"]  # type: ignore[assignment]
                # To the grid of the batch, which the image's own may be smaller than.
                missing = (dense.shape[3] - masks.shape[2], dense.shape[2] - masks.shape[1])
                padded = F.pad(masks, (0, missing[0], 0, missing[1])).to(dense)
                row["mask"] = mask_embeddings(dense[number : number + 1], [padded])
        return rows


def iteration_generator(seed: int, *numbers: int) -> torch.Generator:
    """Make randomness of seed and iteration, which another number of processes draws again.

    Args:
        seed: At least 0.
        numbers: What else it depends on, such as the number of a sample; at least 0.

    Returns:
        A generator on the CPU.
    """
    iteration = int(get_event_storage().iter) if has_event_storage() else 0
    # torch's generator takes no more than 32 bits of a seed.
    state = np.random.SeedSequence([seed, iteration, *numbers]).generate_state(1)
    return torch.Generator().manual_seed(int(state[0]))
