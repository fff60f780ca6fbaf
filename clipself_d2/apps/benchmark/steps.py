"""Steps of distillation and of a detector on a frozen ViT, and the plain versions of both.

Legend: N images, R regions, K classes, T tokens, C tower width, D joint embedding, h w patch grid.
"""

import copy
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.ops import roi_align

from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Step
from clipself_d2.backbones.clip_vit import ClipViT
from clipself_d2.clip import VisionTower, load_tower
from clipself_d2.distillation import CLIPSelfDistiller
from clipself_d2.distillation.base import Towers
from clipself_d2.engine.cli import load_config
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

# Slots of the plain distillation's batch; those beyond the image's own regions are zeros.
NUM_SLOTS = 20
_GRID = 4
_RECIPE = Path(__file__).parents[3] / "configs" / "Base-fvit.yaml"
_DATASET = "clipself_d2_benchmark"


class PlainDistiller(nn.Module):
    """CLIPSelf's step on open_clip's own ViT modules, as it was published.

    Autocast half precision on CUDA, fused attention, crops in padded slots, and the last block run
    once with attention, whose result is thrown away, and once without.

    Args:
        tower: Tower of open_clip's ViT; its network is the student, a copy the teacher.

    Raises:
        ValueError: If it is another network.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2.
    """

    # open_clip's class is not imported outside clip/.
    student: Any
    teacher: Any

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        if not hasattr(tower.visual, "ln_pre"):
            raise ValueError(
                f"the plain step is written for open_clip's ViT, and {tower.name} is another "
                "network; use --model ViT-B-16-quickgelu"
            )
        self.teacher = copy.deepcopy(tower.visual).requires_grad_(False)
        tower.freeze(tower.num_blocks)
        self.student = tower.visual

    def _embed_patches(self, images: Tensor) -> Tensor:
        """Every patch by the student: (N, 3, H, W) to (N, D, h, w)."""
        visual = self.student
        patches, table = visual.conv1(images), visual.positional_embedding
        side = round((len(table) - 1) ** 0.5)
        native = table[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(native, patches.shape[2:], mode="bicubic", align_corners=False)
        tokens = torch.cat(
            [visual.class_embedding.expand(len(images), 1, -1), patches.flatten(2).mT], dim=1
        )
        tokens = visual.ln_pre(tokens + torch.cat([table[:1], resized[0].flatten(1).T]))
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            tokens = block(tokens)
        last(tokens)
        attention = last.attn
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        tokens = tokens + attention.out_proj(F.linear(last.ln_1(tokens), weight, bias))
        tokens = tokens + last.mlp(last.ln_2(tokens))
        embedding = visual.ln_post(tokens[:, 1:]) @ visual.proj
        return embedding.mT.unflatten(2, patches.shape[2:])

    def forward(self, images: Tensor, slots: Tensor, crops: Tensor) -> Tensor:
        """Compute the loss.

        Args:
            images: (N, 3, S, S) normalised.
            slots: (N, 20, 5) XYXY in [0, 1] and whether the slot is used.
            crops: (N, 20, 3, s, s) normalised; zeros in unused slots.

        Returns:
            One minus the mean cosine over the used slots, a scalar.
        """
        used = slots[..., 4] > 0.5
        with torch.autocast(images.device.type, torch.float16, enabled=images.is_cuda):
            with torch.no_grad():
                teacher_RD = self.teacher(crops[used])
            dense = self._embed_patches(images)
        dense = F.normalize(dense.float(), dim=1)
        scale = slots.new_tensor([dense.shape[3], dense.shape[2]] * 2)
        rois = [rows[keep, :4] * scale for rows, keep in zip(slots, used, strict=True)]
        pooled = roi_align(dense, rois, 1, 1.0, -1, aligned=True)[..., 0, 0]
        return 1 - F.cosine_similarity(pooled, teacher_RD.float(), dim=1).mean()


def _make_item(size: int, crop_size: int, num_crops: int) -> dict[str, Any]:
    """A random picture (3, size, size), tiles of it (R, 4) XYXY px, and R random crops."""
    rng = torch.Generator().manual_seed(0)
    step = size / _GRID
    corners = torch.tensor([[x, y] for y in range(_GRID) for x in range(_GRID)]) * step
    image = torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8)
    shape = (num_crops, 3, crop_size, crop_size)
    crops = torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
    boxes = torch.cat([corners, corners + step], dim=1)[:num_crops]
    return {"image": image, "crops": crops, "boxes": boxes}


def _pad_slots(item: dict[str, Any], tower: VisionTower) -> tuple[Tensor, Tensor, Tensor]:
    """An item as the plain version's batch, on the CPU."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.pixel_mean, tower.pixel_std))
    count, size = len(item["boxes"]), item["image"].shape[-1]
    slots = torch.zeros(1, NUM_SLOTS, 5)
    slots[0, :count, :4], slots[0, :count, 4] = item["boxes"] / size, 1
    crops = torch.zeros(1, NUM_SLOTS, *item["crops"].shape[1:])
    crops[0, :count] = (item["crops"] - mean) / std
    return (item["image"][None] - mean) / std, slots, crops


def _training_step(model: nn.Module, loss: Callable[[], Tensor], scaled: bool = False) -> Step:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    scaler = torch.amp.GradScaler(enabled=scaled)

    def step() -> float:
        value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return value.item()

    return step


def build_plain(options: BenchmarkOptions, size: int) -> Step:
    """Make the plain distillation step: forward, backward, AdamW; it returns its loss."""
    torch.manual_seed(0)
    tower = load_tower(options.model, precision="fp32")
    batch = _pad_slots(_make_item(size, tower.image_size, options.num_crops), tower)
    # In evaluation mode the teacher would take PyTorch's fast path, whose products are not counted.
    model = PlainDistiller(tower).to(options.device).train()
    return _training_step(
        model,
        lambda: model(*(part.to(options.device) for part in batch)),
        scaled=options.device == "cuda",
    )


def build_ours(options: BenchmarkOptions, size: int, cut_as_found: bool = False) -> Step:
    """Make our distillation step: forward, backward, AdamW.

    Args:
        options: Model, device, precision, number of crops.
        size: Side of the image, px.
        cut_as_found: Whether crops come as they were cut and are resized on the device.

    Returns:
        Function that takes one step and returns its loss.
    """
    torch.manual_seed(0)
    teacher = load_tower(options.model, precision=options.precision)
    student = copy.deepcopy(teacher)
    student.freeze(student.num_blocks)
    towers = Towers(
        student=student,
        teacher=teacher,
        pixel_mean=teacher.pixel_mean,
        pixel_std=teacher.pixel_std,
    )
    model = CLIPSelfDistiller(towers=towers)
    model.to(options.device).train()
    item = _make_item(size, teacher.image_size, options.num_crops)
    if cut_as_found:
        # The tiles of a picture of 640 x 480 px.
        pieces = _make_item(640, 640 // _GRID, options.num_crops)["crops"]
        item["crops"] = [piece[:, : 480 // _GRID] for piece in pieces]
    return _training_step(model, lambda: model([item])["loss_cosine"])


def build_detector(options: BenchmarkOptions, careless: bool) -> tuple[nn.Module, ClipViT]:
    """Make F-ViT with random weights and 65 random classes.

    Args:
        options: Model, device, precision, regions at test time.
        careless: Whether its frozen ViT keeps a graph, and runs a second time for CLIP's map.

    Returns:
        The detector, and its ViT.
    """
    torch.manual_seed(0)
    tower, names = load_tower(options.model), [f"class {number}" for number in range(65)]
    MetadataCatalog.pop(_DATASET, None)
    MetadataCatalog.get(_DATASET).thing_classes = names
    cfg = load_config(str(_RECIPE), [])
    model = cfg.MODEL
    model.DEVICE, model.CLIP.NAME = options.device, options.model
    model.CLIP.PRECISION = options.precision
    model.PIXEL_MEAN, model.PIXEL_STD = list(tower.pixel_mean), list(tower.pixel_std)
    model.FPN.NORM = model.ROI_BOX_HEAD.NORM = "GN"
    model.ROI_BOX_HEAD.FC_DIM = tower.embed_dim
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE, model.RPN.POST_NMS_TOPK_TEST = options.regions
    with tempfile.TemporaryDirectory() as folder:
        rows = F.normalize(torch.randn(66, tower.embed_dim), dim=1)
        model.VOCABULARY.DATASET, model.VOCABULARY.EMBEDDINGS = _DATASET, f"{folder}/text.pt"
        TextEmbeddings(
            Vocabulary.from_names(names), rows[:-1], rows[-1], options.model, "vild"
        ).save(Path(folder) / "text.pt")
        detector = build_model(cfg)
    backbone = next(module for module in detector.modules() if isinstance(module, ClipViT))
    if careless:
        _run_twice(backbone)
    return detector, backbone


def _run_twice(backbone: ClipViT) -> None:
    tower = backbone.tower
    tower.freeze(tower.num_blocks)

    def forward(images: Tensor) -> dict[str, Tensor]:
        first = tower.forward_dense(images, backbone.tap_blocks, backbone.dense_form)
        names = [f"block{number}" for number in backbone.tap_blocks]
        second = tower.forward_dense(images, (), backbone.dense_form)
        return {**dict(zip(names, first.blocks, strict=True)), "clip": second.embedding}

    backbone.forward = forward  # type: ignore[method-assign]


@contextmanager
def watch_tower(backbone: ClipViT) -> Iterator[Counter[str]]:
    """Count ``passes`` through a tower and ``bytes`` that autograd keeps of it, in a with block."""
    counts, seen = Counter[str](), set[int]()
    dense = backbone.tower.forward_dense

    def keep(tensor: Tensor) -> Tensor:
        # The same storage is saved by several operations.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            counts["bytes"] += storage.nbytes()
        return tensor

    def counted(*args: Any, **kwargs: Any) -> Any:
        counts["passes"] += 1
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return dense(*args, **kwargs)

    backbone.tower.forward_dense = counted  # type: ignore[method-assign]
    try:
        yield counts
    finally:
        backbone.tower.forward_dense = dense  # type: ignore[method-assign]


def detector_step(detector: nn.Module, backbone: ClipViT, size: int, task: str) -> Step:
    """Make a training step (forward, backward, AdamW) or an inference on one random picture.

    Args:
        detector: Of ``build_detector``.
        backbone: Its ViT.
        size: Side of the picture, px.
        task: training or inference.

    Returns:
        Function that runs it. Inference makes a graph only where the backbone is careless.
    """
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(7, 2, generator=rng) * size / 2
    side = (0.1 + 0.4 * torch.rand(7, 2, generator=rng)) * size
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
    instances.gt_classes = torch.randint(0, 65, (7,), generator=rng)
    image = torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8)
    picture = {"image": image, "instances": instances, "height": size, "width": size}
    if task == "inference":
        careless = any(parameter.requires_grad for parameter in backbone.tower.parameters())

        def infer() -> None:
            detector.eval()
            with torch.set_grad_enabled(careless):
                detector([picture])

        return infer
    # The careless variant computes gradients of the tower, but nobody wants them.
    tower = {id(parameter) for parameter in backbone.tower.parameters()}
    trained = [p for p in detector.parameters() if p.requires_grad and id(p) not in tower]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)

    def train() -> None:
        detector.train()
        with EventStorage():
            losses = detector([picture])
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        detector.zero_grad()

    return train


def build_detector_step(options: BenchmarkOptions, size: int, task: str, careless: bool) -> Step:
    """Make a detector and its step, from importable arguments."""
    return detector_step(*build_detector(options, careless), size, task)
