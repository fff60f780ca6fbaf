"""Tiny towers of open_clip's own classes, and what the reference computed with the same weights."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open_clip
import pytest
import timm
import torch
from open_clip.model import CLIP, CustomTextCLIP
from open_clip.timm_model import TimmModel
from torch import Tensor

from clipself_d2.clip import registry
from clipself_d2.clip.model import ClipModel, build_tower
from clipself_d2.clip.text import TextEncoder
from clipself_d2.clip.towers.contract import VisionTower
from clipself_d2.clip.weights.loading import load_clip_weights, load_tower_weights

GOLDEN = Path(__file__).parent.parent / "golden" / "clip"
KINDS = ("vit", "vit_quickgelu", "eva")
_TEXT = {"context_length": 16, "vocab_size": 200, "width": 32, "heads": 2, "layers": 2}
_VISION = {"image_size": 64, "layers": 3, "width": 96, "head_width": 32, "patch_size": 16}


def _read(name: str) -> dict[str, Tensor]:
    """Read arrays stored as four byte planes each."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        stored = {key: file[key] for key in file.files}
    tensors = {}
    for key, planes in stored.items():
        if planes.dtype == np.uint8:
            values = np.frombuffer(np.moveaxis(planes, 0, -1).tobytes(), "<f4")
            tensors[key] = torch.tensor(values).reshape(planes.shape[1:])
    return tensors


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


@dataclass(frozen=True)
class Golden:
    """What the reference got for one kind of tower; names are the reference's."""

    kind: str
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    teacher: dict[str, Tensor]
    student: dict[str, Tensor]
    grads: dict[str, Tensor]
    stepped: dict[str, Tensor]
    ensembled: dict[str, Tensor]
    grad_names: tuple[str, ...]
    no_decay: tuple[str, ...]

    @property
    def boxes(self) -> list[Tensor]:
        """Valid boxes of each big image, XYXY px."""
        size = self.inputs["img_big"].shape[-1]
        return [rows[rows[:, 4] > 0.5][:, :4] * size for rows in self.inputs["boxes"]]

    @property
    def masks(self) -> list[Tensor]:
        """Masks of each big image on its 10 x 10 grid."""
        return [self.inputs["masks0"], self.inputs["masks1"]]


@pytest.fixture(scope="session")
def load_golden() -> Callable[[str], Golden]:
    cache: dict[str, Golden] = {}

    def load(kind: str) -> Golden:
        if kind not in cache:
            # Both activations were run on the same weights.
            weights = _read("eva_weights" if kind == "eva" else "vit_weights")
            teacher = _part(weights, "teacher.")
            noise = _part(weights, "student_minus_teacher.")
            results = _read(f"{kind}_outputs")
            with np.load(GOLDEN / f"{kind}_outputs.npz") as file:
                grad_names, no_decay = file["grad_names"], file["no_decay"]
            cache[kind] = Golden(
                kind=kind,
                inputs=_read("inputs"),
                outputs=_part(results, "outputs."),
                teacher=teacher,
                student={key: teacher[key] + value for key, value in noise.items()},
                grads=_part(results, "grads."),
                stepped=_part(results, "stepped."),
                ensembled=_part(results, "ensembled."),
                grad_names=tuple(grad_names.tolist()),
                no_decay=tuple(no_decay.tolist()),
            )
        return cache[kind]

    return load


@pytest.fixture(params=KINDS)
def golden(request: pytest.FixtureRequest, load_golden: Callable[[str], Golden]) -> Golden:
    return load_golden(request.param)


def make_open_clip(kind: str) -> CLIP | CustomTextCLIP:
    """Build a tiny CLIP of the classes that open_clip uses for ViT-B-16 and EVA02-B-16."""
    if kind != "eva":
        return CLIP(32, dict(_VISION), dict(_TEXT), quick_gelu=kind == "vit_quickgelu")
    clip = CustomTextCLIP(32, dict(_VISION), dict(_TEXT))
    # The trunk of the shell is replaced, so it need not have memory.
    with torch.device("meta"):
        clip.visual = TimmModel("eva02_tiny_patch14_224", 32, image_size=64, pool="token", proj="")
    clip.visual.trunk = timm.create_model(
        "eva02_base_patch16_clip_224",
        img_size=64,
        embed_dim=96,
        depth=3,
        num_heads=3,
        num_classes=32,
        global_pool="token",
    )
    return clip


def make_clip(kind: str, precision: str = "fp32") -> ClipModel:
    """Build the tiny CLIP of one kind with random weights, in eval mode."""
    clip = make_open_clip(kind)
    visual = clip.visual
    del clip.visual
    tower = build_tower(
        visual,
        name=f"tiny-{kind}",
        pixel_mean=(128.0, 128.0, 128.0),
        pixel_std=(64.0, 64.0, 64.0),
        precision=precision,
    )
    tokenizer = open_clip.tokenizer.SimpleTokenizer()
    text = TextEncoder(clip=clip, tokenizer=tokenizer, embed_dim=32)
    return ClipModel(name=f"tiny-{kind}", tower=tower, text=text).eval()


@pytest.fixture(scope="session")
def new_clip() -> Callable[..., ClipModel]:
    return make_clip


@pytest.fixture(scope="session")
def new_open_clip() -> Callable[[str], CLIP | CustomTextCLIP]:
    return make_open_clip


@pytest.fixture
def teacher(golden: Golden, tmp_path: Path) -> ClipModel:
    """The reference's teacher, read from a file of its own layout."""
    model = make_clip(golden.kind)
    torch.save({"epoch": 0, "state_dict": golden.teacher}, tmp_path / "teacher.pt")
    load_clip_weights(model, tmp_path / "teacher.pt")
    return model


@pytest.fixture
def student(golden: Golden, tmp_path: Path) -> VisionTower:
    """The reference's student, read from a file of its own layout."""
    tower = make_clip(golden.kind).tower
    torch.save(golden.student, tmp_path / "student.pt")
    load_tower_weights(tower, tmp_path / "student.pt")
    return tower


@pytest.fixture(scope="session", params=("vit", "eva"))
def made_tower(request: pytest.FixtureRequest) -> VisionTower:
    torch.manual_seed(0)
    made = make_clip(request.param).tower
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return made


@pytest.fixture
def tower(made_tower: VisionTower) -> VisionTower:
    """A tower with random weights that makes every parameter matter."""
    torch.manual_seed(0)
    return copy.deepcopy(made_tower)


@pytest.fixture(scope="session")
def check_gradients() -> Callable[..., None]:
    """Function that holds the gradients of a loss on a dense map against what is trained."""

    def check(tower: VisionTower, *size: int, form: str | None = None) -> None:
        dense = tower.forward_dense(torch.randn(2, 3, *size), form=form).embedding
        (dense * torch.randn_like(dense)).sum().backward()
        for name, parameter in tower.named_parameters():
            gradient = parameter.grad
            assert (gradient is not None) == parameter.requires_grad, name
            assert gradient is None or gradient.abs().max() > 0, name

    return check


@pytest.fixture
def hub_folder(tmp_path: Path) -> Path:
    """The embedded CLIP as a folder of the hub, with pixel statistics of its own."""
    config = json.loads((registry.CONFIG_FOLDER / "ViT-Ti-8-emoji.json").read_text())
    config["text_cfg"].pop("tokenizer_kwargs")
    folder = tmp_path / "cache" / "models--org--tiny.clip" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    settings = {"mean": [0.5, 0.25, 0.125], "std": [0.5, 0.5, 0.5]}
    content = json.dumps({"model_cfg": config, "preprocess_cfg": settings})
    (folder / registry.HUB_CONFIG).write_text(content)
    weights = registry.PROJECT_WEIGHTS["ViT-Ti-8-emoji", "emoji"]
    (folder / registry.HUB_WEIGHTS[0]).symlink_to(weights)
    return folder


@pytest.fixture
def images() -> Tensor:
    return torch.randn((2, 3, 64, 64), generator=torch.Generator().manual_seed(1))
