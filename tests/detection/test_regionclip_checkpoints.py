"""Every published checkpoint of RegionCLIP under our names, at full size without its memory."""

import gzip
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import Tensor, nn

import clipself_d2  # noqa: F401  (registers everything)
from clipself_d2.clip.model import load_clip
from clipself_d2.clip.weights.layouts import to_open_clip
from clipself_d2.detection import text_predictor
from clipself_d2.detection.regionclip_checkpoints import is_published, rename_published
from clipself_d2.engine.cli import load_config
from clipself_d2.parts.frozen_proposals import build_frozen_proposals
from clipself_d2.runs.checkpointer import StrictCheckpointer
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary

ROOT = Path(__file__).parents[2]
KEYS = ROOT / "tests" / "golden" / "regionclip" / "published_keys.json.gz"
DATASET = "published_pets"
# File, recipe, width of the text, and how many of its tensors the detector takes: all but the
# vocabularies of fine-tuned files, and the teacher and text tower of the pre-trained one.
LAYOUTS = [
    ("finetuned_coco_rn50", "transfer_coco_rn50", 1024, 510 - 3),
    ("finetuned_lvis_rn50x4", "transfer_lvis_rn50x4", 640, 817 - 3),
    ("pretrained_cc_rn50", "zeroshot_coco_rpn_rn50", 1024, 1004 - 284 - 149),
]
RPNS = [
    ("finetuned_coco_rn50", "offline_rpn_c4"),
    ("finetuned_lvis_rn50x4", "offline_rpn_fpn_lsj"),
    ("pretrained_cc_rn50", "offline_rpn_zeroshot"),
]


def shapes(name: str) -> dict[str, list[int]]:
    content: dict[str, dict[str, list[int]]] = json.loads(gzip.decompress(KEYS.read_bytes()))
    return content[name]


def published(name: str) -> dict[str, Tensor]:
    """The file's tensors, without memory."""
    return {key: torch.empty(shape, device="meta") for key, shape in shapes(name).items()}


@pytest.fixture(autouse=True)
def pets() -> Iterator[None]:
    MetadataCatalog.get(DATASET).set(thing_classes=["cat", "dog", "owl"], novel_classes=["owl"])
    yield
    MetadataCatalog.remove(DATASET)


@pytest.fixture
def recipe(tmp_path):
    """Function from a recipe to its config on three classes, without weights."""

    def read(name: str, width: int, device: str = "meta") -> CfgNode:
        path = tmp_path / "pets.pt"
        overrides = ["MODEL.CLIP.PRETRAINED", "", "MODEL.CLIP.WEIGHTS", ""]
        overrides += ["MODEL.FROZEN_RPN.WEIGHTS", "", "DATASETS.TRAIN", (DATASET,)]
        overrides += ["MODEL.VOCABULARY.EMBEDDINGS", str(path)]
        cfg = load_config(str(ROOT / "configs" / "regionclip" / f"{name}.yaml"), overrides)
        # No place to compute, so that a command line may not name it.
        cfg.MODEL.DEVICE = device
        rpn = cfg.MODEL.FROZEN_RPN.CONFIG
        cfg.MODEL.FROZEN_RPN.CONFIG = str(ROOT / rpn) if rpn else ""
        rows = F.normalize(torch.randn(3, width), dim=1)
        vocabulary = Vocabulary.from_names(["cat", "dog", "owl"], novel=["owl"])
        TextEmbeddings(vocabulary, rows, None, cfg.MODEL.CLIP.NAME, "single", "").save(path)
        return cfg

    return read


@pytest.fixture
def build(recipe, monkeypatch):
    """Function from a recipe to its detector at full size, without memory."""
    make = text_predictor.build_text_classifier

    def on_cpu(*args: object, **options: object) -> nn.Module:
        with torch.device("cpu"):
            return make(*args, **options)

    monkeypatch.setattr(text_predictor, "build_text_classifier", on_cpu)

    def build_recipe(name: str, width: int) -> nn.Module:
        cfg = recipe(name, width)
        with torch.device("meta"):
            return META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)

    return build_recipe


@pytest.mark.parametrize(("file", "name", "width", "taken"), LAYOUTS)
def test_every_tensor_of_a_published_file_has_its_place(build, file, name, width, taken) -> None:
    model, state = build(name, width), published(file)
    own = model.state_dict()
    assert is_published(state)
    renamed = dict(state)
    rename_published(renamed, own, keep_offline=False)
    assert set(renamed) == set(own)
    assert sum(value is not own[key] for key, value in renamed.items()) == taken
    assert {k for k, v in renamed.items() if v is own[k] and not k.endswith("_tracked")} <= {
        "roi_heads.box_predictor.bbox_pred.weight",
        "roi_heads.box_predictor.bbox_pred.bias",
    }
    model.load_state_dict(state, strict=True)
    # The vocabulary is the config's, whatever the file was trained on.
    assert model.roi_heads.box_predictor.classifier.num_classes == model.roi_heads.num_classes == 3


@pytest.mark.parametrize(("file", "name"), RPNS)
def test_published_rpn_loads_by_its_own_config(recipe, file, name) -> None:
    cfg = recipe("transfer_coco_rn50", 8)
    cfg.MODEL.FROZEN_RPN.CONFIG = str(ROOT / "configs" / "regionclip" / f"{name}.yaml")
    with torch.device("meta"):
        network = build_frozen_proposals(cfg)
    own = {
        key.removeprefix("offline_"): value
        for key, value in published(file).items()
        if key.startswith("offline_")
    }
    network.load_state_dict(own, strict=True)


def test_pretrained_file_is_a_whole_clip() -> None:
    named = to_open_clip(published("pretrained_cc_rn50"))
    assert named.layout == "regionclip"
    with torch.device("meta"):
        clip = load_clip("RN50-quickgelu")
    expected = {key: tuple(value.shape) for key, value in clip.open_clip_state_dict().items()}
    assert {key: tuple(value.shape) for key, value in named.tensors.items()} == expected
    assert named.tensors["logit_scale"].exp().item() == pytest.approx(100.0)
    assert len(named.ignored) == 284 + 281 + 6


def test_rpn_of_a_file_of_its_own_is_kept(build) -> None:
    model = build("zeroshot_coco_rpn_rn50", 1024)
    own = model.state_dict()
    state = published("pretrained_cc_rn50")
    rename_published(state, own, keep_offline=True)
    kept = [key for key in own if key.startswith("offline_rpn.")]
    assert kept
    assert all(state[key] is own[key] for key in kept)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"backbone.layer9.weight": [1]}, "1 unknown: backbone.tower.visual.layer9"),
        ({"surprise": [1]}, "1 unknown: surprise"),
        ({"backbone.conv1.weight": [8, 3, 3, 3]}, "1 of another shape.*conv1"),
        ({"backbone.conv1.weight": None}, "1 missing.*conv1"),
        ({"roi_heads.box_predictor.bbox_pred.bias": None}, "1 missing.*bbox_pred.bias"),
    ],
)
def test_file_that_does_not_fit_is_refused(build, change, message) -> None:
    own = build("transfer_coco_rn50", 1024).state_dict()
    state = published("finetuned_coco_rn50")
    for key, shape in change.items():
        state.pop(key, None)
        if shape is not None:
            state[key] = torch.empty(shape, device="meta")
    with pytest.raises(ValueError, match=message):
        rename_published(state, own, keep_offline=False)


def test_file_of_another_size_or_for_another_backbone_is_refused(build) -> None:
    own = build("transfer_coco_rn50", 1024).state_dict()
    with pytest.raises(ValueError, match="CLIP.NAME"):
        rename_published(published("finetuned_lvis_rn50x4"), own, keep_offline=True)
    with pytest.raises(ValueError, match="build_clip_resnet_backbone"):
        rename_published(
            published("finetuned_coco_rn50"),
            {"backbone.conv1.weight": torch.zeros(1)},
            keep_offline=True,
        )


@pytest.mark.slow
def test_published_file_of_full_size_loads_through_the_trainer(recipe, tmp_path) -> None:
    """The whole way of MODEL.WEIGHTS, with values."""
    torch.manual_seed(0)
    state = {key: torch.rand(shape) for key, shape in shapes("finetuned_coco_rn50").items()}
    path = tmp_path / "regionclip_finetuned-coco_rn50.pth"
    torch.save({"model": state, "iteration": 7}, path)
    model = build_model(recipe("transfer_coco_rn50", 1024, device="cpu"))
    text = model.roi_heads.box_predictor.classifier.embeddings_KD.clone()
    StrictCheckpointer(model, str(tmp_path)).load(str(path))
    own = model.state_dict()
    pairs = {
        "backbone.layer3.5.bn2.running_var": "backbone.tower.visual.layer3.5.bn2.running_var",
        "offline_backbone.res4.5.conv3.norm.running_mean": (
            "offline_rpn.backbone.res4.5.conv3.norm.running_mean"
        ),
        "roi_heads.box_predictor.bbox_pred.weight": "roi_heads.box_predictor.bbox_pred.weight",
    }
    for theirs, ours in pairs.items():
        assert torch.equal(own[ours], state[theirs]), ours
    assert torch.equal(model.roi_heads.box_predictor.classifier.embeddings_KD, text)
