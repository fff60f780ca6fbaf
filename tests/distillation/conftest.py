"""Small distillers and batches for them."""

import copy

import pytest
import torch
import torch.nn.functional as F
from open_clip.modified_resnet import ModifiedResNet
from torch import nn

from clipself_d2.clip import load_tower
from clipself_d2.clip.model import build_tower
from clipself_d2.clip.towers.resnet import ResNetTower
from clipself_d2.distillation import (
    CLIPSelfDistiller,
    RegionCLIPPretrainer,
    RegionTextDistiller,
    Towers,
)
from clipself_d2.distillation.regionclip import LossWeights
from clipself_d2.distillation.regions import RegionProposer

NAME = "ViT-Ti-8-emoji"


def make_towers(**overrides: object) -> Towers:
    torch.manual_seed(0)
    teacher = load_tower(NAME)
    student = copy.deepcopy(teacher)
    student.freeze(-1)
    made = {
        "student": student,
        "teacher": teacher,
        "pixel_mean": teacher.pixel_mean,
        "pixel_std": teacher.pixel_std,
    }
    return Towers(**{**made, **overrides})


@pytest.fixture
def make_clipself():
    """Function from arguments to a CLIPSelfDistiller with random weights."""

    def make(*, pad_to_square: bool = False, **arguments: object) -> CLIPSelfDistiller:
        return CLIPSelfDistiller(towers=make_towers(pad_to_square=pad_to_square), **arguments)

    return make


@pytest.fixture
def make_region_text():
    """Function from constructor arguments to a RegionTextDistiller of 10 classes."""

    def make(**overrides: object) -> RegionTextDistiller:
        text = torch.randn(10, 128, generator=torch.Generator().manual_seed(3))
        return RegionTextDistiller(
            towers=make_towers(), **{"text_KD": text, "scale": 20.0, **overrides}
        )

    return make


@pytest.fixture
def make_item():
    """Function from a seed to an item with regions, crops and classes."""

    def make(seed: int, regions: int = 3, size: tuple[int, int] = (48, 64)) -> dict[str, object]:
        generator = torch.Generator().manual_seed(seed)
        corner = torch.rand(regions, 2, generator=generator) * 20
        return {
            "image": torch.randint(0, 255, (3, *size), generator=generator, dtype=torch.uint8),
            "boxes": torch.cat([corner, corner + 20], dim=1),
            "crops": torch.randint(0, 255, (regions, 3, 64, 64), generator=generator).byte(),
            "whole": torch.randint(0, 255, (1, 3, 64, 64), generator=generator).byte(),
            "region_classes": torch.randint(0, 10, (regions,), generator=generator),
            "caption": "dog" + "s" * seed,
        }

    return make


def make_resnet() -> ResNetTower:
    """A ResNet with a native size of 64 px, embeddings 24-d and norms that do something."""
    torch.manual_seed(1)
    visual = ModifiedResNet([1, 1, 2, 1], 24, 4, image_size=64, width=8)
    for module in visual.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, std=0.1)
    zero, one = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    tower = build_tower(visual.eval(), name="tiny", pixel_mean=zero, pixel_std=one)
    assert isinstance(tower, ResNetTower)
    return tower


class WordText(nn.Module):
    """Stands for a text tower: a fixed random vector for every text."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.embed_dim = embed_dim
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, texts: list[str]) -> torch.Tensor:
        rows = [
            torch.randn(self.embed_dim, generator=torch.Generator().manual_seed(len(text)))
            for text in texts
        ]
        return F.normalize(torch.stack(rows), dim=1)


@pytest.fixture
def resnet() -> ResNetTower:
    return make_resnet()


@pytest.fixture
def make_regionclip():
    """Function from switches and arguments to a RegionCLIPPretrainer of 10 concepts.

    ``resnet=True`` makes the student a ResNet, ``other_teacher=True`` the teacher.
    """

    def make(
        *, resnet=False, other_teacher=False, rpn=None, towers_=None, parts_=None, **options
    ) -> RegionCLIPPretrainer:
        changes = dict(towers_ or {})
        if resnet:
            changes["student"] = make_resnet()
            changes["student"].freeze(3)
        if resnet != other_teacher:
            changes["teacher"] = make_resnet()
        towers = make_towers(**changes)
        generator = torch.Generator().manual_seed(3)
        tables = {
            "concepts_CD": torch.randn(10, towers.student.embed_dim, generator=generator),
            "teacher_concepts_CD": torch.randn(10, towers.teacher.embed_dim, generator=generator),
        }
        if not other_teacher:
            tables["teacher_concepts_CD"] = tables["concepts_CD"]
        drawn = {k: options.pop(k) for k in ("max_regions", "crop_enlarge") if k in options}
        if options.get("teacher_regions") == "crop":
            drawn.setdefault("crop_enlarge", 1.0)
        weights = {
            k: options.pop(k) for k in ("distill", "contrastive", "image_text") if k in options
        }
        return RegionCLIPPretrainer(
            **{
                "towers": towers,
                **tables,
                "text": WordText(towers.student.embed_dim),
                "proposer": None if rpn is None else RegionProposer(rpn, **drawn),
                "concept_threshold": 0.0,
                "weights": LossWeights(**weights),
                **options,
                **(parts_ or {}),
            }
        )

    return make
