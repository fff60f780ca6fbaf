"""Steps of a detector on a frozen ViT, and a careless version of it."""

import tempfile
from collections import Counter
from collections.abc import Iterator
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

from clipself_d2.apps.benchmark.measure import BenchmarkOptions, Step
from clipself_d2.backbones.clip_vit import ClipViT
from clipself_d2.clip import load_tower
from clipself_d2.engine.cli import load_config
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

_RECIPE = Path(__file__).parents[3] / "configs" / "Base-fvit.yaml"
_DATASET = "clipself_d2_benchmark"


def build_detector(
    options: BenchmarkOptions, careless: bool, mode: str = "off"
) -> tuple[nn.Module, ClipViT]:
    """Make F-ViT with random weights and 65 random classes, and its ViT.

    A careless one keeps a graph of its frozen ViT, and runs it a second time for CLIP's map;
    ``mode`` is as MODEL.CLIP.COMPILE.
    """
    torch.manual_seed(0)
    tower, names = load_tower(options.model), [f"class {number}" for number in range(65)]
    MetadataCatalog.pop(_DATASET, None)
    MetadataCatalog.get(_DATASET).thing_classes = names
    cfg = load_config(str(_RECIPE), [])
    model = cfg.MODEL
    model.DEVICE, model.CLIP.NAME = options.device, options.model
    model.CLIP.PRECISION, model.CLIP.COMPILE = options.precision, mode
    model.PIXEL_MEAN, model.PIXEL_STD = list(tower.pixel_mean), list(tower.pixel_std)
    # SyncBN needs several processes.
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


def detector_step(
    detector: nn.Module, backbone: ClipViT, size: int, task: str, count: int = 1
) -> Step:
    """Make a training step (forward, backward, AdamW) or an inference on copies of a picture.

    On a GPU the step has the recipes' mixed precision, in bf16. Inference makes a graph only where
    the backbone is careless.
    """
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(7, 2, generator=rng) * size / 2
    side = (0.1 + 0.4 * torch.rand(7, 2, generator=rng)) * size
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
    instances.gt_classes = torch.randint(0, 65, (7,), generator=rng)
    image = torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8)
    picture = {"image": image, "instances": instances, "height": size, "width": size}
    pictures = [picture] * count
    device = next(detector.parameters()).device
    if task == "inference":
        careless = any(parameter.requires_grad for parameter in backbone.tower.parameters())

        def infer() -> None:
            detector.eval()
            with torch.set_grad_enabled(careless):
                detector(pictures)

        return infer
    # The careless variant computes gradients of the tower, but nobody wants them.
    tower = {id(parameter) for parameter in backbone.tower.parameters()}
    trained = [p for p in detector.parameters() if p.requires_grad and id(p) not in tower]
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=device.type == "cuda")

    def train() -> None:
        detector.train()
        mixed = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
        with EventStorage(), mixed:
            losses = detector(pictures)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        detector.zero_grad()

    return train


def build_detector_step(
    options: BenchmarkOptions, variant: tuple[bool, str], size: int, task: str, count: int
) -> Step:
    """Make a detector and its step, from importable arguments."""
    return detector_step(*build_detector(options, *variant), size, task, count)
