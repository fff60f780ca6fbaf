"""A step of CLIPSelf: ours against a plain version of the same arithmetic.

Legend: N images, R regions, H heads, T tokens, C tower width, D joint embedding, h w patch grid.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import roi_align

from clipself_d2.apps.benchmark.measure import (
    MIB,
    BenchmarkOptions,
    Row,
    Step,
    compute_type,
    matrix_peak,
    median_seconds,
    peak_memory,
)
from clipself_d2.clip import load_tower
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.distillation import CLIPSelfDistiller, Towers

# Slots of the plain version's batch; regions beyond the image's own are zeros.
NUM_SLOTS = 20
_GRID = 4


class PlainTower(nn.Module):
    """An OpenAI-style ViT whose attention matrices are written out, in float32.

    Args:
        tower: Tower whose weights are copied.

    Raises:
        ValueError: If it is not open_clip's ViT.
    """

    # open_clip's class is not imported outside clip/.
    visual: Any

    def __init__(self, tower: VisionTower) -> None:
        super().__init__()
        visual = copy.deepcopy(tower.visual)
        if not hasattr(visual, "positional_embedding") or not hasattr(visual, "ln_pre"):
            raise ValueError(
                f"the plain step is written for open_clip's ViT, and {tower.name} is another "
                "network; use --model ViT-B-16-quickgelu"
            )
        self.visual = visual
        self.patch_size = tower.patch_size

    def embed(self, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Turn pixels into tokens.

        Args:
            images: (N, 3, H, W), sides multiples of the patch.

        Returns:
            (N, T, C), and the patch grid (h, w).
        """
        visual = self.visual
        patches = visual.conv1(images)
        grid = (patches.shape[2], patches.shape[3])
        table = visual.positional_embedding
        side = round((len(table) - 1) ** 0.5)
        native = table[1:].T.reshape(1, -1, side, side)
        resized = F.interpolate(native, grid, mode="bicubic", align_corners=False)
        positions = torch.cat([table[:1], resized[0].flatten(1).T])
        first = visual.class_embedding.expand(len(images), 1, -1)
        tokens = torch.cat([first, patches.flatten(2).transpose(1, 2)], dim=1)
        return visual.ln_pre(tokens + positions), grid

    def embed_images(self, images: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            images: (N, 3, H, W).

        Returns:
            (N, D), not normalised.
        """
        tokens, _ = self.embed(images)
        for block in self.visual.transformer.resblocks:
            tokens = _attend(block, tokens)
        return self.visual.ln_post(tokens[:, 0]) @ self.visual.proj

    def embed_patches(self, images: Tensor) -> Tensor:
        """Embed every patch; the last block runs twice, and its attention is thrown away.

        Args:
            images: (N, 3, H, W).

        Returns:
            (N, D, h, w), unit norm in every cell.
        """
        tokens, grid = self.embed(images)
        *blocks, last = self.visual.transformer.resblocks
        for block in blocks:
            tokens = _attend(block, tokens)
        _attend(last, tokens)
        tokens = _pass_values(last, tokens)[:, 1:]
        embedding = F.normalize(self.visual.ln_post(tokens) @ self.visual.proj, dim=-1)
        return embedding.transpose(1, 2).reshape(len(images), -1, *grid)


def _attend(block: Any, tokens: Tensor) -> Tensor:
    """Apply a block with its attention matrix in memory; (N, T, C) to (N, T, C)."""
    attention = block.attn
    query, key, value = F.linear(
        block.ln_1(tokens), attention.in_proj_weight, attention.in_proj_bias
    ).chunk(3, dim=-1)
    split = (*tokens.shape[:2], attention.num_heads, -1)
    query, key, value = (part.reshape(split).transpose(1, 2) for part in (query, key, value))
    weights_NHTT = ((query * query.shape[-1] ** -0.5) @ key.transpose(2, 3)).softmax(dim=-1)
    mixed = (weights_NHTT @ value).transpose(1, 2).reshape(tokens.shape)
    tokens = tokens + attention.out_proj(mixed)
    output: Tensor = tokens + block.mlp(block.ln_2(tokens))
    return output


def _pass_values(block: Any, tokens: Tensor) -> Tensor:
    """Apply a block in which every token attends to itself; (N, T, C) to (N, T, C)."""
    attention, width = block.attn, tokens.shape[-1]
    value = F.linear(
        block.ln_1(tokens),
        attention.in_proj_weight[2 * width :],
        attention.in_proj_bias[2 * width :],
    )
    tokens = tokens + attention.out_proj(value)
    output: Tensor = tokens + block.mlp(block.ln_2(tokens))
    return output


class PlainDistiller(nn.Module):
    """The step as it was published: padded slots, float32, every attention matrix in memory.

    Args:
        student: Tower that is trained.
        teacher: Its frozen original.

    Reference: CLIPSelf, arXiv 2310.01403, section 3.2. The published training ran under fp16
    autocast; here all is float32.
    """

    def __init__(self, *, student: VisionTower, teacher: VisionTower) -> None:
        super().__init__()
        self.student, self.teacher = PlainTower(student), PlainTower(teacher)
        self.teacher.requires_grad_(False)

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
        with torch.no_grad():
            teacher_RD = self.teacher.embed_images(crops[used])
        dense = self.student.embed_patches(images)
        scale = slots.new_tensor([dense.shape[3], dense.shape[2]] * 2)
        rois = [rows[keep, :4] * scale for rows, keep in zip(slots, used, strict=True)]
        pooled = roi_align(dense, rois, 1, 1.0, -1, aligned=True)[..., 0, 0]
        return 1 - F.cosine_similarity(pooled, teacher_RD, dim=1).mean()


def make_item(size: int, crop_size: int, num_crops: int) -> dict[str, Tensor]:
    """Make the training item of one random picture.

    Args:
        size: Side of the image, px.
        crop_size: Side of the crops, px.
        num_crops: Regions R, at most 16.

    Returns:
        ``image`` (3, size, size) uint8, ``boxes`` (R, 4) tiles of it, XYXY px, and ``crops``
        (R, 3, crop_size, crop_size) uint8.

    Raises:
        ValueError: If there are more regions than tiles.
    """
    if not 1 <= num_crops <= _GRID**2:
        raise ValueError(f"a benchmark step has 1 to {_GRID**2} crops, not {num_crops}")
    rng = torch.Generator().manual_seed(0)
    step = size / _GRID
    corners = torch.tensor([[x, y] for y in range(_GRID) for x in range(_GRID)]) * step
    boxes = torch.cat([corners, corners + step], dim=1)[:num_crops]
    pixels = {"image": (3, size, size), "crops": (num_crops, 3, crop_size, crop_size)}
    item = {
        key: torch.randint(0, 256, shape, generator=rng, dtype=torch.uint8)
        for key, shape in pixels.items()
    }
    return {**item, "boxes": boxes}


def pad_slots(item: dict[str, Tensor], tower: VisionTower) -> tuple[Tensor, Tensor, Tensor]:
    """Turn an item into the plain version's batch, on the CPU.

    Args:
        item: Of ``make_item``.
        tower: Gives the pixel statistics.

    Returns:
        Arguments of ``PlainDistiller.forward``.
    """
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (tower.pixel_mean, tower.pixel_std))
    count, size = len(item["boxes"]), item["image"].shape[-1]
    slots = torch.zeros(1, NUM_SLOTS, 5)
    slots[0, :count, :4], slots[0, :count, 4] = item["boxes"] / size, 1
    crops = torch.zeros(1, NUM_SLOTS, *item["crops"].shape[1:])
    crops[0, :count] = (item["crops"] - mean) / std
    return (item["image"][None] - mean) / std, slots, crops


def _towers(options: BenchmarkOptions, precision: str) -> tuple[VisionTower, VisionTower]:
    torch.manual_seed(0)
    teacher = load_tower(options.model, precision=precision)
    return copy.deepcopy(teacher), teacher


def _training_step(model: nn.Module, loss: Callable[[], Tensor]) -> Step:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)

    def step() -> float:
        value = loss()
        value.backward()
        optimizer.step()
        optimizer.zero_grad()
        return float(value)

    return step


def build_ours(options: BenchmarkOptions, size: int, cut_as_found: bool = False) -> Step:
    """Make our step: forward, backward, AdamW.

    Args:
        options: Model, device, precision, number of crops.
        size: Side of the image, px.
        cut_as_found: Whether crops come as they were cut and are resized on the device.

    Returns:
        Function that takes one step and returns its loss.
    """
    student, teacher = _towers(options, options.precision)
    student.freeze(student.num_blocks)
    towers = Towers(
        student=student,
        teacher=teacher,
        pixel_mean=teacher.pixel_mean,
        pixel_std=teacher.pixel_std,
    )
    model = CLIPSelfDistiller(towers=towers)
    model.to(options.device).train()
    item: dict[str, object] = dict(make_item(size, teacher.image_size, options.num_crops))
    if cut_as_found:
        # The tiles of a picture of 640 x 480 px.
        pieces = make_item(640, 640 // _GRID, options.num_crops)["crops"]
        item["crops"] = [piece[:, : 480 // _GRID] for piece in pieces]
    return _training_step(model, lambda: model([item])["loss_cosine"])


def build_plain(options: BenchmarkOptions, size: int) -> Step:
    """Make the plain step: forward, backward, AdamW.

    Args:
        options: Model, device, number of crops.
        size: Side of the image, px.

    Returns:
        Function that takes one step and returns its loss.
    """
    student, teacher = _towers(options, "fp32")
    student.freeze(student.num_blocks)
    batch = pad_slots(make_item(size, teacher.image_size, options.num_crops), teacher)
    model = PlainDistiller(student=student, teacher=teacher)
    model.to(options.device).train()
    model.teacher.eval()
    return _training_step(model, lambda: model(*(part.to(options.device) for part in batch)))


def benchmark_distill(options: BenchmarkOptions) -> list[Row]:
    """Measure the step at every size.

    Args:
        options: What to measure.

    Returns:
        A row for each size and variant. Ratios compare with the plain version; above 1 we are
        faster, or smaller.
    """
    dtypes = dict.fromkeys(VARIANTS, compute_type(options.device, options.precision))
    dtypes["plain"] = torch.float32
    peaks = {dtype: matrix_peak(options.device, dtype) for dtype in set(dtypes.values())}
    rows: list[Row] = []
    for size in options.sizes:
        memory = {
            name: peak_memory(
                build, options, size, *more, device=options.device, isolated=options.isolated
            )
            for name, (build, more) in VARIANTS.items()
        }
        steps = {name: build(options, size, *more) for name, (build, more) in VARIANTS.items()}
        flops = {name: _flops(step) for name, step in steps.items()}
        # Counting has warmed them up.
        seconds = median_seconds(steps, options.repeats, options.device, warm_up=False)
        for name in VARIANTS:
            reached = flops[name] / seconds[name]
            rows.append(
                {
                    "size": size,
                    "variant": name,
                    "type": str(dtypes[name]).removeprefix("torch."),
                    "images/s": 1 / seconds[name],
                    "speed ratio": seconds["plain"] / seconds[name],
                    "peak MiB": memory[name].total / MIB,
                    "peak ratio": memory["plain"].total / max(1, memory[name].total),
                    "step MiB": memory[name].step / MIB,
                    "step ratio": memory["plain"].step / max(1, memory[name].step),
                    "GFLOP": flops[name] / 1e9,
                    "GFLOP/s": reached / 1e9,
                    "share of product peak": reached / peaks[dtypes[name]],
                }
            )
    return rows


def _flops(step: Step) -> int:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


# The plain version comes first: the others are compared with it.
VARIANTS: dict[str, tuple[Callable[..., Step], tuple[object, ...]]] = {
    "plain": (build_plain, ()),
    "ours": (build_ours, ()),
    "ours, crops resized in the step": (build_ours, (True,)),
}
