"""A frozen ViT in a detector: one pass of the tower and no graph, against two passes with one."""

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from clipself_d2.apps.benchmark.measure import (
    MIB,
    BenchmarkOptions,
    Row,
    Step,
    median_seconds,
    peak_memory,
)
from clipself_d2.backbones.clip_vit import ClipViT
from clipself_d2.clip import load_tower
from clipself_d2.engine.cli import load_config
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

NUM_CLASSES = 65
NUM_BOXES = 7
TASKS = ("training", "inference")
# The careless variant comes first: ours is compared with it.
VARIANTS = {"two passes, graph": True, "ours": False}
_DATASET = "clipself_d2_benchmark"


class TwoPassClipViT(ClipViT):
    """The frozen ViT without care: a graph through the tower, and a second pass for the CLIP map.

    Args:
        parts: Arguments of ``ClipViT``.
    """

    @classmethod
    def take_over(cls, backbone: ClipViT) -> None:
        """Make a backbone one of this kind, in place.

        Args:
            backbone: With a frozen tower.
        """
        backbone.__class__ = cls
        backbone.tower.freeze(backbone.tower.num_blocks)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Compute the features; same values and names as ``ClipViT``.

        Args:
            images: (N, 3, H, W).

        Returns:
            Features by name.
        """
        first = self.tower.forward_dense(images, self.tap_blocks, self.last_block)
        names = [f"block{number}" for number in self.tap_blocks]
        features = dict(zip(names, first.blocks, strict=True))
        features["clip"] = self.tower.forward_dense(images, (), self.last_block).embedding
        return features


class TowerWatch:
    """What a detector's tower does during a step.

    Attributes:
        passes: Number of times that pixels went through it.
        saved_bytes: Size of what autograd kept for the tower's backward pass.
    """

    def __init__(self) -> None:
        self.passes = 0
        self.saved_bytes = 0


@contextmanager
def watch_tower(backbone: ClipViT) -> Iterator[TowerWatch]:
    """Count passes and saved tensors of a backbone's tower inside a with block.

    Args:
        backbone: The ViT.

    Yields:
        The counts, which grow.
    """
    watch, seen = TowerWatch(), set[int]()
    run, passes = backbone.forward, ("forward_dense", "forward_image")
    tower_names, backbone_names = backbone.tower.__dict__, backbone.__dict__

    def counted(method: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            watch.passes += 1
            return method(*args, **kwargs)

        return call

    def keep(tensor: Tensor) -> Tensor:
        # The same storage is saved by several operations.
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in seen:
            seen.add(storage.data_ptr())
            watch.saved_bytes += storage.nbytes()
        return tensor

    def watched_run(images: Tensor) -> dict[str, Tensor]:
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return run(images)

    # nn.Module looks these up on the instance first.
    tower_names.update({name: counted(getattr(backbone.tower, name)) for name in passes})
    backbone_names["forward"] = watched_run
    try:
        yield watch
    finally:
        for name in passes:
            del tower_names[name]
        del backbone_names["forward"]


def build_detector(options: BenchmarkOptions, two_passes: bool) -> nn.Module:
    """Make F-ViT with random weights and 65 random classes.

    Args:
        options: Model, device, precision.
        two_passes: Whether its backbone is the careless one.

    Returns:
        The detector, in training mode.
    """
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        cfg = _config(options, Path(folder) / "text.pt")
        detector = build_model(cfg)
    if two_passes:
        TwoPassClipViT.take_over(find_backbone(detector))
    return detector.train()


def find_backbone(detector: nn.Module) -> ClipViT:
    """Return the ViT of a detector.

    Args:
        detector: Of ``build_detector``.

    Returns:
        Its backbone.
    """
    return next(module for module in detector.modules() if isinstance(module, ClipViT))


def _config(options: BenchmarkOptions, embeddings: Path) -> CfgNode:
    tower = load_tower(options.model)
    names = [f"class {number}" for number in range(NUM_CLASSES)]
    vocabulary = Vocabulary.from_names(names)
    rows = F.normalize(torch.randn(NUM_CLASSES + 1, tower.embed_dim), dim=1)
    TextEmbeddings(vocabulary, rows[:-1], rows[-1], options.model, "vild").save(embeddings)
    MetadataCatalog.pop(_DATASET, None)
    MetadataCatalog.get(_DATASET).thing_classes = names
    cfg = load_config("", [])
    model = cfg.MODEL
    model.META_ARCHITECTURE, model.DEVICE = "GeneralizedRCNN", options.device
    model.PIXEL_MEAN, model.PIXEL_STD = list(tower.pixel_mean), list(tower.pixel_std)
    model.CLIP.NAME, model.CLIP.PRECISION = options.model, options.precision
    model.VOCABULARY.DATASET, model.VOCABULARY.EMBEDDINGS = _DATASET, str(embeddings)
    model.BACKBONE.NAME, model.FPN.NORM = "build_clip_vit_fpn_backbone", "GN"
    model.ANCHOR_GENERATOR.SIZES = [[32], [64], [128], [256], [512]]
    model.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
    model.ROI_HEADS.NAME = "OpenVocabROIHeads"
    model.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    model.ROI_HEADS.BATCH_SIZE_PER_IMAGE, model.RPN.POST_NMS_TOPK_TEST = options.regions
    head = model.ROI_BOX_HEAD
    head.NAME, head.NORM, head.NUM_CONV, head.NUM_FC = "FastRCNNConvFCHead", "GN", 4, 2
    head.FC_DIM, head.CLS_AGNOSTIC_BBOX_REG = tower.embed_dim, True
    cfg.INPUT.FORMAT = "RGB"
    cfg.freeze()
    return cfg


def make_picture(size: int) -> dict[str, object]:
    """Make one random picture with boxes, as Detectron2's mappers hand it on.

    Args:
        size: Side, px.

    Returns:
        ``image``, ``instances``, ``height``, ``width``.
    """
    rng = torch.Generator().manual_seed(0)
    corner = torch.rand(NUM_BOXES, 2, generator=rng) * size / 2
    side = (0.1 + 0.4 * torch.rand(NUM_BOXES, 2, generator=rng)) * size
    instances = Instances((size, size))
    instances.gt_boxes = Boxes(torch.cat([corner, corner + side], dim=1))
    instances.gt_classes = torch.randint(0, NUM_CLASSES, (NUM_BOXES,), generator=rng)
    image = torch.randint(0, 256, (3, size, size), generator=rng, dtype=torch.uint8)
    return {"image": image, "instances": instances, "height": size, "width": size}


def make_step(detector: nn.Module, size: int, task: str) -> Step:
    """Make a training step (forward, backward, AdamW) or an inference on one picture.

    Args:
        detector: Of ``build_detector``.
        size: Side of the picture, px.
        task: training or inference.

    Returns:
        Function that runs it. Inference makes a graph only where the backbone is careless.
    """
    picture, backbone = make_picture(size), find_backbone(detector)
    if task == "inference":
        detector.eval()
        careless = isinstance(backbone, TwoPassClipViT)
        return torch.set_grad_enabled(careless)(lambda: detector([picture]))
    tower = {id(parameter) for parameter in backbone.tower.parameters()}
    # The careless variant computes gradients of the tower, but nobody wants them.
    trained = [p for p in detector.parameters() if p.requires_grad and id(p) not in tower]
    optimizer = torch.optim.AdamW(trained, lr=1e-5)
    detector.train()

    def train() -> None:
        with EventStorage():
            losses = detector([picture])
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()
        detector.zero_grad()

    return train


def build_step(options: BenchmarkOptions, size: int, task: str, two_passes: bool) -> Step:
    """Make a detector and its step.

    Args:
        options: Model, device, precision.
        size: Side of the image, px.
        task: training or inference.
        two_passes: Whether the backbone is the careless one.

    Returns:
        Function that runs it.
    """
    return make_step(build_detector(options, two_passes), size, task)


def benchmark_detector(options: BenchmarkOptions) -> list[Row]:
    """Measure training step and inference at every size.

    Args:
        options: What to measure.

    Returns:
        A row for each size, task and variant. Ratios compare with the careless variant; above 1
        we are faster, or smaller.
    """
    detectors = {name: build_detector(options, careless) for name, careless in VARIANTS.items()}
    rows: list[Row] = []
    for size in options.sizes:
        for task in TASKS:
            rows += _rows_of_task(options, detectors, size, task)
    return rows


def _rows_of_task(
    options: BenchmarkOptions, detectors: dict[str, nn.Module], size: int, task: str
) -> list[Row]:
    memory = {
        name: peak_memory(
            build_step,
            options,
            size,
            task,
            careless,
            device=options.device,
            isolated=options.isolated,
        )
        for name, careless in VARIANTS.items()
    }
    steps = {name: make_step(detector, size, task) for name, detector in detectors.items()}
    seconds = median_seconds(steps, options.repeats, options.device)
    first, *_ = VARIANTS
    rows: list[Row] = []
    for name, detector in detectors.items():
        with watch_tower(find_backbone(detector)) as watch:
            steps[name]()
        rows.append(
            {
                "size": size,
                "task": task,
                "regions": options.regions[TASKS.index(task)],
                "variant": name,
                "images/s": 1 / seconds[name],
                "speed ratio": seconds[first] / seconds[name],
                "tower passes": watch.passes,
                "saved MiB": watch.saved_bytes / MIB,
                "peak MiB": memory[name].total / MIB,
                "step MiB": memory[name].step / MIB,
                "step ratio": memory[first].step / max(1, memory[name].step),
            }
        )
    return rows
