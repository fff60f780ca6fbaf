"""A step of distillation, and the published arithmetic of the same step.

Legend: N images, R regions, T tokens, C tower width, D joint embedding, h w patch grid.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import roi_align

from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Step
from clipself_d2.clip import VisionTower, load_tower
from clipself_d2.clip.precision import autocast_dtype, compute_context
from clipself_d2.clip.towers.eva import EvaTower
from clipself_d2.clip.towers.tokens import TokenTower
from clipself_d2.distillation import CLIPSelfDistiller
from clipself_d2.distillation.base import Item, Towers
from clipself_d2.engine.solver import fused_options

# Slots of a picture in the published batch; those beyond its own regions are zeros.
NUM_SLOTS = 20
_GRID = 4


class PublishedDistiller(nn.Module):
    """CLIPSelf's step on the modules of open_clip and timm, as it was published.

    Autocast in half precision, fused attention (torch's in the place of xformers'), crops in padded
    slots, and the last block run once with attention, whose result is thrown away, and once
    without.

    Args:
        tower: Tower of open_clip's ViT or of EVA02; its network is the student, a copy the teacher.
        dtype: Number type of the autocast; float32 is none.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2.
    """

    # Classes of open_clip and timm are not imported outside clip/.
    student: Any
    teacher: Any

    def __init__(self, tower: VisionTower, dtype: torch.dtype) -> None:
        super().__init__()
        is_eva = isinstance(tower, EvaTower)
        if is_eva:
            self._dense = self._embed_eva
            self._rotary = tower.rotary
        elif hasattr(tower.visual, "ln_pre"):
            self._dense = self._embed_vit
        else:
            raise ValueError(
                f"the published step is written for open_clip's ViT and EVA02, and {tower.name} is "
                "another network; use --model ViT-B-16-quickgelu"
            )
        self.dtype = dtype
        self.teacher = copy.deepcopy(tower.visual).requires_grad_(False)
        tower.freeze(tower.num_blocks)
        self.student = tower.visual

    def _embed_vit(self, images: Tensor) -> Tensor:
        """Every patch by open_clip's ViT: (N, 3, H, W) to (N, D, h, w)."""
        visual = self.student
        patches, table = visual.conv1(images), visual.positional_embedding
        tokens = visual.ln_pre(_place(patches, visual.class_embedding[None, None], table))
        *blocks, last = visual.transformer.resblocks
        for block in blocks:
            tokens = block(tokens)
        # Published so: the result of the whole block is thrown away.
        last(tokens)
        attention = last.attn
        # Every token its own value; queries and keys are the first two thirds.
        weight, bias = attention.in_proj_weight.chunk(3)[2], attention.in_proj_bias.chunk(3)[2]
        tokens = tokens + attention.out_proj(F.linear(last.ln_1(tokens), weight, bias))
        tokens = tokens + last.mlp(last.ln_2(tokens))
        embedding = visual.ln_post(tokens[:, 1:]) @ visual.proj
        return embedding.mT.unflatten(2, patches.shape[2:])

    def _embed_eva(self, images: Tensor) -> Tensor:
        """Every patch by EVA02: (N, 3, H, W) to (N, D, h, w)."""
        trunk = self.student.trunk
        patches = trunk.patch_embed.proj(images)
        rotary = self._rotary(tuple(patches.shape[2:]), images.device)  # type: ignore[operator]
        tokens = _place(patches, trunk.cls_token, trunk.pos_embed[0])
        *blocks, last = trunk.blocks
        for block in blocks:
            tokens = block(tokens, rope=rotary)
        last(tokens, rope=rotary)
        attention = last.attn
        value = attention.norm(attention.v_proj(last.norm1(tokens)))
        tokens = tokens + attention.proj(value)
        tokens = tokens + last.mlp(last.norm2(tokens))
        embedding = self.student.head(trunk.head(trunk.fc_norm(trunk.norm(tokens[:, 1:]))))
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
        is_half = self.dtype != torch.float32
        with torch.autocast(images.device.type, self.dtype if is_half else None, enabled=is_half):
            with torch.no_grad():
                teacher_RD = self.teacher(crops[used])
            dense = self._dense(images)
        dense = F.normalize(dense.float(), dim=1)
        # Boxes in [0, 1] to cells of the grid.
        scale = slots.new_tensor([dense.shape[3], dense.shape[2]] * 2)
        rois = [rows[keep, :4] * scale for rows, keep in zip(slots, used, strict=True)]
        pooled = roi_align(dense, rois, 1, 1.0, -1, aligned=True)[..., 0, 0]
        return 1 - F.cosine_similarity(pooled, teacher_RD.float(), dim=1).mean()


def _place(patches: Tensor, class_token: Tensor, table: Tensor) -> Tensor:
    """Patches (N, C, h, w) as tokens (N, 1 + h * w, C) with resized positions."""
    side = round((len(table) - 1) ** 0.5)
    # Row 0 is the class token's position.
    native = table[1:].T.reshape(1, -1, side, side)
    resized = F.interpolate(native, patches.shape[2:], mode="bicubic", align_corners=False)
    positions = torch.cat([table[:1], resized[0].flatten(1).T])
    cls = class_token.expand(len(patches), -1, -1)
    return torch.cat([cls, patches.flatten(2).mT], dim=1) + positions


def make_items(count: int, size: int, crop_size: int, num_crops: int) -> list[Item]:
    """Make random pictures, at most 16 tiles of each as regions, and random crops.

    Args:
        count: Number of pictures.
        size: Their side, px.
        crop_size: Side of the crops, px.
        num_crops: Regions of each picture, at most 16.
    """
    rng = torch.Generator().manual_seed(0)
    step = size / _GRID
    corners = torch.tensor([[x, y] for y in range(_GRID) for x in range(_GRID)]) * step
    boxes = torch.cat([corners, corners + step], dim=1)[:num_crops]
    shape = (num_crops, 3, crop_size, crop_size)
    return [
        {
            "image": torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8),
            "crops": torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8),
            "boxes": boxes,
        }
        for _ in range(count)
    ]


def pad_slots(items: list[Item], tower: VisionTower) -> tuple[Tensor, Tensor, Tensor]:
    """Lay items out as ``images``, ``slots`` and ``crops`` of the published step, on the CPU."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.pixel_mean, tower.pixel_std))
    rows: list[dict[str, Any]] = items
    pixels = torch.stack([row["image"] for row in rows])
    slots = torch.zeros(len(rows), NUM_SLOTS, 5)
    crops = torch.zeros(len(rows), NUM_SLOTS, *rows[0]["crops"].shape[1:])
    for number, row in enumerate(rows):
        count = len(row["boxes"])
        slots[number, :count, :4], slots[number, :count, 4] = row["boxes"] / pixels.shape[-1], 1
        crops[number, :count] = (row["crops"] - mean) / std
    return (pixels - mean) / std, slots, crops


def number_type(options: BenchmarkOptions) -> torch.dtype:
    """Tell in which type our variants multiply: float32, bfloat16 or float16."""
    device = torch.device(options.device)
    with compute_context(device, options.precision):
        return autocast_dtype(device) or torch.float32


def published_type(options: BenchmarkOptions) -> torch.dtype:
    """Tell in which type the published step multiplies: float16 on a GPU, else in ours."""
    return torch.float16 if options.device == "cuda" else number_type(options)


def _training_step(
    model: nn.Module, loss: Callable[[], Tensor], *, scaled: bool, fused: bool
) -> Step:
    trained = [p for p in model.parameters() if p.requires_grad]
    # None is torch's own choice.
    kind = True if fused and fused_options(trained) else None
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=kind)
    scaler = torch.amp.GradScaler(enabled=scaled)

    def step() -> Tensor:
        value = loss()
        scaler.scale(value).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        return value.detach()

    return step


def build_published(options: BenchmarkOptions, name: str, size: int, count: int) -> Step:
    """Make the published step: forward, backward with loss scaling on a GPU, AdamW."""
    torch.manual_seed(0)
    tower = load_tower(name, precision="fp32")
    batch = pad_slots(make_items(count, size, tower.image_size, options.num_crops), tower)
    # In evaluation mode the teacher would take PyTorch's fast path, whose products are not counted.
    model = PublishedDistiller(tower, published_type(options)).to(options.device).train()
    return _training_step(
        model,
        lambda: model(*(part.to(options.device) for part in batch)),
        scaled=options.device == "cuda",
        fused=False,
    )


def build_ours(options: BenchmarkOptions, name: str, size: int, count: int, mode: str) -> Step:
    """Make our step on the same batch, ``mode`` as MODEL.CLIP.COMPILE."""
    torch.manual_seed(0)
    teacher = load_tower(name, precision=options.precision)
    assert isinstance(teacher, TokenTower), f"{name} has no blocks"
    teacher.set_compile(mode)
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
    items = make_items(count, size, teacher.image_size, options.num_crops)
    scaled = options.device == "cuda" and number_type(options) == torch.float16
    return _training_step(model, lambda: model(items)["loss_cosine"], scaled=scaled, fused=True)
