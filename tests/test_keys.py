"""Every key of ours is alive: moved, it makes a difference to what is built or loaded."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from torch import nn

from clipself_d2.apps.files.config_page import read_groups
from clipself_d2.clip import load_tower
from clipself_d2.clip.vision_model import VisionModel
from clipself_d2.data.datasets.refcoco import register_emoji_refer
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.evaluate import test_vocabulary as words_of_test_set
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts.frozen_proposals import build_frozen_proposals
from clipself_d2.parts.text_embeddings import dataset_vocabulary, training_embeddings
from clipself_d2.vocabulary import TextEmbeddings

Probe = Callable[[CfgNode], object]


def describe(thing: object, depth: int = 7) -> object:
    """Say what a built object is made of: classes, settings, sizes, sums of tensors."""
    if isinstance(thing, np.ndarray):
        thing = torch.from_numpy(thing)
    if isinstance(thing, torch.Tensor):
        return tuple(thing.shape), round(float(thing.double().sum()), 9), thing.requires_grad
    if thing is None or isinstance(thing, bool | int | float | str | Path | torch.dtype):
        return str(thing)
    if depth == 0:
        return type(thing).__name__
    if isinstance(thing, Mapping):
        return {str(key): describe(value, depth - 1) for key, value in thing.items()}
    if isinstance(thing, Sequence | set | frozenset):
        return [describe(value, depth - 1) for value in thing]
    if isinstance(thing, nn.Module):
        named = [*thing.named_parameters(), *thing.named_buffers()]
        settings = {
            name: {
                key: describe(value, 5)
                for key, value in vars(module).items()
                if not isinstance(value, nn.Module) and key[:1] != "_"
            }
            for name, module in thing.named_modules()
        }
        return repr(thing), [(name, describe(tensor)) for name, tensor in named], settings
    if is_dataclass(thing) or hasattr(thing, "__dict__"):
        return type(thing).__name__, describe(dict(vars(thing)), depth - 1)
    return type(thing).__name__


def model(cfg: CfgNode) -> object:
    torch.manual_seed(0)
    return build_model(cfg)


def batch(cfg: CfgNode) -> object:
    torch.manual_seed(0)
    np.random.seed(0)  # Detectron2's augmentations draw from it
    trainer = DistillTrainer if "Distill" in cfg.MODEL.META_ARCHITECTURE else Trainer
    return next(iter(trainer.build_train_loader(cfg)))


def optimizer(cfg: CfgNode) -> object:
    torch.manual_seed(0)
    made = Trainer.build_optimizer(cfg, build_model(cfg))
    groups = [{k: v for k, v in g.items() if k != "params"} for g in made.param_groups]
    return type(made), groups, made.defaults


def loop(cfg: CfgNode) -> object:
    return type(Trainer(cfg)._trainer.model).__name__


def saved_share(cfg: CfgNode) -> object:
    return DistillTrainer(cfg).checkpointer._alpha


def evaluator(cfg: CfgNode) -> object:
    return Trainer.build_evaluator(cfg, "emoji_lvis_val").protocol()


def pictures_at_once(cfg: CfgNode) -> object:
    return len(next(iter(Trainer.build_test_loader(cfg, "emoji_ov_val"))))


def grouped(cfg: CfgNode) -> object:
    return bool(DistillTrainer.build_train_loader(cfg).batch_sampler._groups)


def prompted(cfg: CfgNode) -> object:
    return words_of_test_set(cfg, "emoji_ov_val")[0].names


def hooks(cfg: CfgNode) -> object:
    return [type(hook).__name__ for hook in Trainer(cfg)._hooks]


def mirrored(cfg: CfgNode) -> object:
    runs: list[dict] = []
    wandb = SimpleNamespace(init=lambda **options: runs.append(options))
    with mock.patch.dict(sys.modules, wandb=wandb):
        Trainer(cfg)
    return [(run["project"], run["sync_tensorboard"]) for run in runs]


def cached(cfg: CfgNode) -> object:
    training_embeddings(cfg)
    folder = cfg.MODEL.VOCABULARY.CACHE_DIR
    return len(list(Path(folder).iterdir())) if folder else 0


BLENDED = ("MODEL.PROPOSAL_GENERATOR.NAME", "BlendedRPN")
CLIP, WORDS, HEADS = "MODEL.CLIP.", "MODEL.VOCABULARY.", "MODEL.OPEN_VOCAB."
DISTILL, PRETRAIN, RPN = "MODEL.DISTILL.", "MODEL.REGIONCLIP.", "MODEL.FROZEN_RPN."
CRIS, REGIONS, MASKS = "MODEL.CRIS.", "INPUT.REGIONS.", "MODEL.OV_PANOPTIC."
CATSEG = "MODEL.CAT_SEG."
CATSEG_MODEL: tuple[str, Probe, tuple[object, ...]] = (
    "catseg_untouched",
    model,
    (WORDS + "DATASET", "three_stuffs"),
)
SCORED = ("TEST.EVAL_PERIOD", 2, "DATASETS.TEST", ("emoji_ov_val",))
TRAINED = (CLIP + "TRAINABLE_BLOCKS", -1)
# Key, value, recipe, probe, and what the recipe needs beside; {tmp} is a folder with small files.
MOVES: list[tuple[str, object, str, Probe, tuple[object, ...]]] = [
    (CLIP + "NAME", "ViT-S-32-alt", "fvit_untouched", model, (CLIP + "TAP_BLOCKS", [2, 5])),
    (CLIP + "PRETRAINED", "emoji", "fvit_untouched", model, ()),
    (CLIP + "WEIGHTS", "{tmp}/student.pth", "fvit_untouched", model, ()),
    (CLIP + "PRECISION", "bf16", "fvit_untouched", model, ()),
    (CLIP + "COMPILE", "blocks", "fvit_untouched", model, ()),
    (CLIP + "ACTIVATION_CHECKPOINTING", True, "fvit_untouched", model, ()),
    (CLIP + "TRAINABLE_BLOCKS", 2, "fvit_untouched", model, ()),
    (CLIP + "TEXT_TRAINABLE_BLOCKS", 1, "cris", model, ()),
    (CLIP + "DROP_PATH", 0.2, "fvit_untouched", model, TRAINED),
    (CLIP + "DENSE_FORM", "attention", "fvit_untouched", model, ()),
    (CLIP + "TRAINABLE_PARTS", "attention", "fvit_untouched", model, TRAINED),
    (CLIP + "ANY_FORM", True, "fvit_untouched", model, ()),
    (CLIP + "WINDOW_SIZE", 4, "fvit_untouched", model, ()),
    (CLIP + "GLOBAL_BLOCKS", [1], "fvit_untouched", model, (CLIP + "WINDOW_SIZE", 4)),
    (CLIP + "TAP_BLOCKS", [1, 5], "fvit_untouched", model, ()),
    ("MODEL.CLIP_FPN.STRIDES", [8, 32], "rpn", model,
     ("MODEL.RPN.IN_FEATURES", ["p3"], "MODEL.ANCHOR_GENERATOR.SIZES", [[32]])),
    ("MODEL.CLIP_FPN.SQUARE_SIZE", 192, "fvit_untouched", model, ()),
    (WORDS + "DATASET", "three_words", "fvit_untouched", model, ()),
    (WORDS + "TEMPLATES", "emoji", "fvit_untouched", model, ()),
    (WORDS + "EMBEDDINGS", "{tmp}/words.pt", "fvit_untouched", model, ()),
    (WORDS + "CACHE_DIR", "{tmp}/cache", "fvit_untouched", cached, (CLIP + "PRETRAINED", "emoji")),
    (HEADS + "BACKGROUND", "learned", "fvit_untouched", model, ()),
    (HEADS + "BACKGROUND_WEIGHT", 0.3, "fvit_untouched", model, ()),
    (HEADS + "SCALE", 33.0, "fvit_untouched", model, ()),
    (HEADS + "LEARN_SCALE", False, "fvit_untouched", model, ()),
    (HEADS + "CLIP_SCALE", 33.0, "fvit_untouched", model, ()),
    (HEADS + "ENSEMBLE_ALPHA", 0.15, "fvit_untouched", model, ()),
    (HEADS + "ENSEMBLE_BETA", 0.15, "fvit_untouched", model, ()),
    (HEADS + "FOCAL_GAMMA", 0.7, "fvit_untouched", model, ()),
    (HEADS + "NORMALIZE_WEIGHTS", True, "fvit_untouched", model, ()),
    (HEADS + "REFINE_BOXES", False, "fvit_untouched", model, ()),
    (HEADS + "CLIP_OBJECTNESS", 0.1, "fvit_untouched", model, BLENDED),
    (HEADS + "RPN_SCORE", "sigmoid", "fvit_untouched", model, ()),
    (HEADS + "SOFT_NMS", "linear", "fvit_untouched", model, ()),
    (DISTILL + "PAD_TO_SQUARE", True, "clipself_patches", model, ()),
    (DISTILL + "SAMPLED_CLASSES", 7, "region_text", model, ()),
    (DISTILL + "TERMS", [{"loss": "crop", "weight": 0.5}], "declip", model, ()),
    ("MODEL.VFM.NAME", "vit_tiny_patch16_224", "declip", model, ()),
    ("MODEL.VFM.WEIGHTS", "{tmp}/vfm.pth", "declip", model, ()),
    (DISTILL + "STUDENT_SHARE", 0.5, "clipself_patches", saved_share, ()),
    (PRETRAIN + "CONCEPTS", "{tmp}/other.txt", "regionclip", model, ()),
    (PRETRAIN + "TEACHER_NAME", "ViT-S-32-alt", "regionclip", model, ()),
    (PRETRAIN + "TEACHER_PRETRAINED", "emoji", "regionclip", model, ()),
    (PRETRAIN + "TEACHER_REGIONS", "roi", "regionclip", model, ()),
    (PRETRAIN + "LOSS_WEIGHTS", [0.5, 1.0, 1.0], "regionclip", model, ()),
    (RPN + "CONFIG", "{tmp}/rpn.yaml", "regionclip_zeroshot_rpn", model, (RPN + "WEIGHTS", "")),
    (RPN + "WEIGHTS", "{tmp}/rpn.pth", "regionclip_zeroshot_rpn", model, (RPN + "WEIGHTS", "")),
    (CRIS + "WORD_LEN", 12, "cris", model, ()),
    (CRIS + "FPN_OUT", [32, 64, 128], "cris", model, ()),
    (CRIS + "NUM_LAYERS", 1, "cris", model, ()),
    (CRIS + "DIM_FFN", 64, "cris", model, ()),
    (CRIS + "DROPOUT", 0.3, "cris", model, ()),
    (CRIS + "KERNEL_SIZE", 3, "cris", model, ()),
    (CRIS + "NORM", "GN", "cris", model, ()),
    (MASKS + "PIXEL_ATTENTION_LAYERS", 1, "ov_panoptic_untouched", model, ()),
    (MASKS + "NUM_QUERIES", 5, "ov_panoptic_untouched", model, ()),
    (MASKS + "NUM_LAYERS", 2, "ov_panoptic_untouched", model, ()),
    (MASKS + "NUM_POINTS", 99, "ov_panoptic_untouched", model, ()),
    (MASKS + "POOLING", "soft", "ov_panoptic_untouched", model, ()),
    (MASKS + "RECOGNITION", 0.3, "ov_panoptic_untouched", model, ()),
    (MASKS + "TASKS", ["semantic"], "ov_panoptic_untouched", model, ()),
    (CATSEG + "CLIP_SIZE", 128, *CATSEG_MODEL),
    (CATSEG + "WINDOW_SIZE", 96, *CATSEG_MODEL),
    (CATSEG + "CANVAS_SIZE", 256, *CATSEG_MODEL),
    (CATSEG + "DIM", 64, *CATSEG_MODEL),
    (CATSEG + "NUM_LAYERS", 2, *CATSEG_MODEL),
    (CATSEG + "ATTENTION_WINDOW", 4, *CATSEG_MODEL),
    (CATSEG + "POOLING", 1, *CATSEG_MODEL),
    (CATSEG + "PAD_LEN", 16, *CATSEG_MODEL),
    (CATSEG + "SHORTLIST", 3, *CATSEG_MODEL),
    (CATSEG + "MASK_IGNORED", False, *CATSEG_MODEL),
    (REGIONS + "SOURCE", "random", "clipself_patches", batch, ()),
    (REGIONS + "PROPOSAL_FILE", "{tmp}/proposals.json", "clipself_patches", batch,
     (REGIONS + "SOURCE", "proposals", REGIONS + "PROPOSAL_FILE", "{tmp}/others.json")),
    (REGIONS + "IMAGE_SIZES", (64,), "clipself_patches", batch, ()),
    (REGIONS + "MAX_BOXES", 3, "clipself_patches", batch, (REGIONS + "SOURCE", "random")),
    (REGIONS + "SIZE_RANGE", [60, 70], "clipself_patches", batch, (REGIONS + "SOURCE", "random")),
    (REGIONS + "CROP_ENLARGE", 2.0, "clipself_patches", batch, (REGIONS + "SOURCE", "random")),
    (REGIONS + "RESIZE_ON_DEVICE", True, "clipself_patches", batch, ()),
    (REGIONS + "GROUP_ASPECTS", True, "clipself_patches", grouped, ()),
    ("INPUT.LSJ_SIZE", 96, "fvit_untouched", batch, ()),
    ("INPUT.SEMANTIC_MAX_AREA", 1.0, "fvit_untouched", batch, ()),
    ("INPUT.REFER_SIZE", 64, "cris", batch, ("DATASETS.TRAIN", ("tiny_refer_train",))),
    ("SOLVER.OPTIMIZER", "Adam", "rpn", optimizer, ("SOLVER.CLIP_GRADIENTS.ENABLED", False)),
    ("SOLVER.ADAM_BETAS", [0.8, 0.9], "rpn", optimizer, ()),
    ("SOLVER.ADAM_EPS", 1e-3, "rpn", optimizer, ()),
    ("SOLVER.BACKBONE_MULTIPLIER", 0.5, "rpn", optimizer, TRAINED),
    ("SOLVER.LAYER_DECAY", 0.5, "rpn", optimizer, TRAINED),
    ("SOLVER.ACCUMULATION_STEPS", 2, "rpn", loop, ()),
    ("TEST.IMS_PER_BATCH", 2, "fvit_untouched", pictures_at_once, ()),
    ("TEST.BACKEND", "reference", "fvit_untouched", evaluator, ()),
    ("TEST.FIXED_AP", True, "fvit_untouched", evaluator, ()),
    ("TEST.SYNONYMS", True, "fvit_untouched", prompted, ()),
    ("TEST.SYNONYM_MODE", "index:1", "fvit_untouched", prompted, ("TEST.SYNONYMS", True)),
    ("TEST.PICTURES", 1, "fvit_untouched", hooks, SCORED),
    ("WANDB_PROJECT", "owls", "fvit_untouched", mirrored, ()),
]  # fmt: skip


@pytest.fixture(scope="module")
def made(emoji_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of small files that keys can name."""
    folder = tmp_path_factory.mktemp("keys")
    torch.manual_seed(5)
    torch.save({"model": load_tower("ViT-Ti-8-emoji").state_dict()}, folder / "student.pth")
    torch.manual_seed(6)
    tiny = VisionModel("tiny").model.state_dict()
    torch.save({key: value + 0.01 for key, value in tiny.items()}, folder / "vfm.pth")
    (folder / "concepts.txt").write_text("dog,3\ncat,2\n")
    (folder / "other.txt").write_text("car,3\nkey,2\n")
    rpn = Path(__file__).parents[1] / "configs" / "emoji" / "rpn.yaml"
    (folder / "rpn.yaml").write_text(f"_BASE_: {rpn}\nMODEL:\n  FPN:\n    OUT_CHANNELS: 32\n")
    rows = json.loads((emoji_root / "emoji/annotations/instances_train_all.json").read_text())[
        "images"
    ]
    for name, side in (("proposals", 60), ("others", 90)):
        boxes = [{"image_id": row["id"], "bbox": [8, 8, side, side], "score": 0.9} for row in rows]
        (folder / f"{name}.json").write_text(json.dumps(boxes))
    words = dataset_vocabulary("emoji_ov_train")
    rows_KD = nn.functional.normalize(torch.randn(words.num_classes, 128), dim=1)
    given = TextEmbeddings(words, rows_KD, rows_KD[0], "ViT-Ti-8-emoji", "", "emoji")
    given.save(folder / "words.pt")
    return folder


@pytest.fixture
def files(made: Path, emoji_data: Path, catalogs, tmp_path: Path) -> Path:
    """The small files in a folder of the test's own, and data sets of three words."""
    MetadataCatalog.get("three_words").set(thing_classes=["dog", "car", "key"])
    MetadataCatalog.get("three_stuffs").set(stuff_classes=["dog", "car", "key"])
    register_emoji_refer(emoji_data, prefix="tiny")
    return Path(shutil.copytree(made, tmp_path / "files", copy_function=os.link))


def place(value: object, folder: Path) -> object:
    return value.format(tmp=folder) if isinstance(value, str) else value


@pytest.fixture
def observe(emoji_cfg, files):
    """Function from a recipe, a probe and overrides to a description of what is made."""

    def run(recipe: str, probe: Probe, *overrides: object) -> str:
        needed: tuple[object, ...] = (WORDS + "CACHE_DIR", "")
        if recipe == "regionclip":
            needed += (PRETRAIN + "CONCEPTS", "{tmp}/concepts.txt", REGIONS + "SOURCE", "grid")
        given = [place(value, files) for value in (*needed, *overrides)]
        if str(files / "rpn.pth") in given:
            # Its random numbers are the same each time.
            network = build_frozen_proposals(emoji_cfg(recipe, RPN + "WEIGHTS", "")).state_dict()
            moved = {key: value + 1 for key, value in network.items()}
            torch.save({"model": moved}, files / "rpn.pth")
        return repr(describe(probe(emoji_cfg(recipe, *given)))).replace(str(files), "{tmp}")

    return run


def test_every_key_has_a_move() -> None:
    keys = [key.name for keys in read_groups().values() for key in keys]
    assert sorted(key for key, *_ in MOVES) == sorted(keys)


# What is observed without a move, by recipe, probe and what they need.
UNMOVED: dict[str, str] = {}


@pytest.mark.parametrize(
    ("key", "value", "recipe", "probe", "extra"), MOVES, ids=[m[0] for m in MOVES]
)
def test_moving_the_key_makes_a_difference(observe, key, value, recipe, probe, extra) -> None:
    name = f"{recipe} {probe.__name__} {extra}"
    if name not in UNMOVED:
        UNMOVED[name] = observe(recipe, probe, *extra)
    assert observe(recipe, probe, *extra, key, value) != UNMOVED[name]


@pytest.mark.parametrize(
    ("recipe", "probe"), sorted({(m[2], m[3]) for m in MOVES}, key=lambda pair: str(pair))
)
def test_what_is_observed_repeats(observe, recipe: str, probe: Probe) -> None:
    """In a folder of another name, too: what a move is held against is kept from test to test."""
    extra = next(m[4] for m in MOVES if (m[2], m[3]) == (recipe, probe))
    first = UNMOVED.get(f"{recipe} {probe.__name__} {extra}") or observe(recipe, probe, *extra)
    assert observe(recipe, probe, *extra) == first
