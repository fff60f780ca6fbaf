"""Made-up classes, heads that take them, and steps of one-stage detectors on emoji scenes."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from clipself_d2.config import add_clipself_config
from clipself_d2.data.build import build_detection_train_loader_from_cfg
from clipself_d2.detection import OpenVocabROIHeads
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

DATASET = "roi_heads_pets"
CLIP_DIM = 8
IMAGE_SIZE = (64, 96)
STRIDES = {"p2": 4, "p3": 8, "p4": 16, "p5": 32, "p6": 64}
CLIP_STRIDE = 8


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def embed(vocabulary: Vocabulary, seed: int) -> TextEmbeddings:
    """Random embeddings of a vocabulary."""
    rows = F.normalize(random(vocabulary.num_classes + 1, CLIP_DIM, seed=seed), dim=1)
    return TextEmbeddings(vocabulary, rows[:-1], rows[-1], "ViT-Ti-8-emoji", "emoji", "emoji")


@pytest.fixture
def pets() -> TextEmbeddings:
    """Five classes, of which owl and fox are novel."""
    names = ["cat", "dog", "owl", "cow", "fox"]
    return embed(Vocabulary.from_names(names, novel=["owl", "fox"]), seed=11)


@pytest.fixture
def tools() -> TextEmbeddings:
    """Three classes that a user typed."""
    return embed(Vocabulary.from_names(["saw", "axe", "awl"]), seed=12)


@pytest.fixture
def heads_cfg(pets: TextEmbeddings, tmp_path: Path) -> Iterator[CfgNode]:
    """Config of tiny heads on the classes of ``pets``."""
    MetadataCatalog.get(DATASET).set(
        thing_classes=list(pets.vocabulary.names), novel_classes=list(pets.vocabulary.novel_names)
    )
    pets.save(tmp_path / "pets.pt")
    cfg = get_cfg()
    add_clipself_config(cfg)
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = (DATASET,)
    cfg.MODEL.CLIP.NAME = "ViT-Ti-8-emoji"
    cfg.MODEL.PIXEL_MEAN = cfg.MODEL.PIXEL_MEAN[::-1]  # RGB
    cfg.MODEL.CLIP.PRETRAINED = "emoji"
    cfg.MODEL.VOCABULARY.TEMPLATES = "emoji"
    cfg.MODEL.VOCABULARY.EMBEDDINGS = str(tmp_path / "pets.pt")
    cfg.MODEL.ROI_HEADS.NAME = "OpenVocabROIHeads"
    cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 16
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.0
    cfg.MODEL.ROI_BOX_HEAD.NAME = "FastRCNNConvFCHead"
    cfg.MODEL.ROI_BOX_HEAD.NUM_FC = 1
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 12
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 3
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 1
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 4
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = True
    yield cfg
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def input_shape() -> dict[str, ShapeSpec]:
    shape = {name: ShapeSpec(channels=6, stride=stride) for name, stride in STRIDES.items()}
    shape["clip"] = ShapeSpec(channels=CLIP_DIM, stride=CLIP_STRIDE)
    return shape


@pytest.fixture
def make_heads(
    heads_cfg: CfgNode, input_shape: dict[str, ShapeSpec]
) -> Callable[..., OpenVocabROIHeads]:
    """Builder of heads with spread-out weights, from overrides of the config."""

    def make(*overrides: object) -> OpenVocabROIHeads:
        heads_cfg.merge_from_list(list(overrides))
        torch.manual_seed(0)
        heads = OpenVocabROIHeads(heads_cfg, input_shape)
        # Detectron2 begins with deltas near 0, under which refined boxes would be the proposals.
        torch.nn.init.normal_(heads.box_predictor.bbox_pred[-1].weight, std=1.0)
        return heads.eval()

    return make


@pytest.fixture
def features() -> dict[str, Tensor]:
    """Feature maps of two images of ``IMAGE_SIZE``."""
    height, width = IMAGE_SIZE
    maps = {
        name: random(2, 6, -(-height // stride), -(-width // stride), seed=stride)
        for name, stride in STRIDES.items()
    }
    dense = random(2, CLIP_DIM, height // CLIP_STRIDE, width // CLIP_STRIDE, seed=1)
    maps["clip"] = F.normalize(dense, dim=1)
    return maps


def make_proposals(*counts: int) -> list[Instances]:
    """Random proposals, so many for each image."""
    proposals = []
    for seed, count in enumerate(counts):
        corner = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed)) * 40
        size = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed + 9)) * 20 + 4
        boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        logits = torch.zeros(count)
        proposals.append(Instances(IMAGE_SIZE, proposal_boxes=boxes, objectness_logits=logits))
    return proposals


def make_targets(*labels: Sequence[int]) -> list[Instances]:
    """Ground truth at the first proposals of each image, with masks."""
    targets = []
    for proposals, classes in zip(make_proposals(*(8 for _ in labels)), labels, strict=True):
        boxes = proposals.proposal_boxes[: len(classes)]
        masks = torch.zeros(len(classes), *IMAGE_SIZE, dtype=torch.bool)
        for mask, (x0, y0, x1, y1) in zip(masks, boxes.tensor.int().tolist(), strict=True):
            mask[y0:y1, x0:x1] = True
        targets.append(
            Instances(
                IMAGE_SIZE,
                gt_boxes=boxes,
                gt_classes=torch.tensor(list(classes), dtype=torch.long),
                gt_masks=BitMasks(masks),
            )
        )
    return targets


@pytest.fixture
def proposals() -> Callable[..., list[Instances]]:
    return make_proposals


@pytest.fixture
def targets() -> Callable[..., list[Instances]]:
    return make_targets


@pytest.fixture
def dense_cfg(emoji_cfg) -> Callable[..., CfgNode]:
    """Function from a config name and overrides to a config that keeps every detection."""

    def build(name: str, *overrides: object) -> CfgNode:
        every = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.0, "MODEL.RETINANET.NUM_CONVS", 1]
        tests = ["DATASETS.TEST", ("emoji_ov_val",)]
        return emoji_cfg(name, *every, *tests, *overrides)

    return build


@pytest.fixture
def step() -> Callable[[CfgNode], tuple[nn.Module, dict[str, Tensor]]]:
    """Function from a config to a model with gradients, and its losses."""

    def run(cfg: CfgNode) -> tuple[nn.Module, dict[str, Tensor]]:
        torch.manual_seed(0)
        model = build_model(cfg).train()
        with EventStorage():
            losses = model(next(iter(build_detection_train_loader_from_cfg(cfg))))
        sum(losses.values()).backward()
        return model, losses

    return run


@pytest.fixture
def first_scene() -> Callable[[CfgNode], list[dict]]:
    """Function from a config to the batch of its first test scene."""
    return lambda cfg: next(iter(build_detection_test_loader(cfg, cfg.DATASETS.TEST[0])))


@pytest.fixture
def typed() -> Callable[[int], TextEmbeddings]:
    """Function from a width to the random embeddings of two words."""

    def make(width: int) -> TextEmbeddings:
        rows = torch.randn(2, width, generator=torch.Generator().manual_seed(3))
        unit = nn.functional.normalize(rows, dim=1)
        words = Vocabulary.from_names(["saw", "axe"])
        return TextEmbeddings(words, unit, None, "ViT-Ti-8-emoji", "emoji")

    return make
