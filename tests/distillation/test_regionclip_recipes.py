"""RegionCLIP's recipes: the published numbers, a run on emoji scenes, and what it is good for."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from clipself_d2.clip import load_tower
from clipself_d2.data.build import build_distill_train_loader_from_cfg
from clipself_d2.data.datasets import resolve_dataset_names
from clipself_d2.distillation import RegionCLIPPretrainer, regionclip_build
from clipself_d2.engine.cli import load_config
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts.frozen_proposals import build_frozen_proposals
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary
from clipself_d2.vocabulary.concepts import ConceptPool

FOLDER = Path(__file__).parents[2] / "configs" / "regionclip"
LOSSES = {"loss_region_distill", "loss_concept", "loss_image_text"}
ABLATIONS = sorted(
    path.stem
    for path in (FOLDER / "ablations").glob("*.yaml")
    if "RegionCLIPPretrainer" in str(load_config(str(path), []).MODEL.META_ARCHITECTURE)
)

TINY_RPN = """
MODEL:
  META_ARCHITECTURE: ProposalNetwork
  RESNETS: {DEPTH: 50, WIDTH_PER_GROUP: 4, STEM_OUT_CHANNELS: 8, RES2_OUT_CHANNELS: 8}
  RPN: {POST_NMS_TOPK_TEST: 5}
VERSION: 2
"""


@pytest.fixture
def keys(emoji_data, tmp_path, catalogs_of_captions) -> list[object]:
    """Overrides that put any recipe on the tiny emoji scenes."""
    concepts = tmp_path / "concepts.txt"
    concepts.write_text("dog,3\ncat,2\ntraffic light,1\n")
    proposals = emoji_data / "emoji" / "annotations" / "instances_train_base.json"
    return [
        *("DATASETS.TRAIN", (catalogs_of_captions,), "DATASETS.TEST", ()),
        *("MODEL.REGIONCLIP.CONCEPTS", str(concepts), "MODEL.VOCABULARY.TEMPLATES", "single"),
        *("MODEL.VOCABULARY.CACHE_DIR", "", "INPUT.REGIONS.PROPOSAL_FILE", str(proposals)),
    ]


@pytest.fixture
def catalogs_of_captions(emoji_data):
    """Name of the captioned training scenes of the tiny folder."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    folder = emoji_data / "emoji"
    name = f"captions:{folder}/annotations/captions_train.json:{folder}/train"
    resolve_dataset_names([name])
    yield name
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


@pytest.mark.parametrize("name", ["rn50", "rn50x4"])
def test_the_resnets_have_the_published_numbers(name: str) -> None:
    cfg = load_config(str(FOLDER / f"pretrain_{name}.yaml"), [])
    solver, regions, keys = cfg.SOLVER, cfg.INPUT.REGIONS, cfg.MODEL.REGIONCLIP
    assert (solver.OPTIMIZER, solver.BASE_LR, solver.MOMENTUM) == ("SGD", 0.002, 0.9)
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (96, 600000, (300000, 525000))
    assert (solver.WEIGHT_DECAY, solver.WARMUP_ITERS, solver.WARMUP_FACTOR) == (1e-4, 1000, 0.001)
    clipping = solver.CLIP_GRADIENTS
    assert (clipping.CLIP_TYPE, clipping.CLIP_VALUE, clipping.ENABLED) == ("norm", 5.0, True)
    assert (regions.SOURCE, regions.MAX_BOXES) == ("rpn", 100)
    assert (regions.IMAGE_SIZES, cfg.INPUT.MIN_SIZE_TRAIN) == ((1333,), (800,))
    assert keys.TEACHER_REGIONS == "roi"
    assert keys.LOSS_WEIGHTS == [1, 1, 1]
    assert cfg.MODEL.CLIP.TRAINABLE_BLOCKS == 3
    assert cfg.MODEL.VOCABULARY.TEMPLATES == "regionclip81"


def test_the_pretraining_rpn_gives_300_boxes_at_05() -> None:
    rpn = load_config(str(FOLDER / "offline_rpn_pretrain.yaml"), []).MODEL.RPN
    assert (rpn.POST_NMS_TOPK_TEST, rpn.PRE_NMS_TOPK_TEST, rpn.NMS_THRESH) == (300, 1000, 0.5)


@pytest.mark.parametrize("regions", ["proposals", "random"])
def test_a_run_gives_a_tower_for_the_detector(regions, keys, emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("regionclip", *keys, "INPUT.REGIONS.SOURCE", regions)
    trainer = DistillTrainer(cfg)
    before = {name: value.clone() for name, value in trainer.model.student.state_dict().items()}
    trainer.train()
    file = tmp_path / "out" / "model_final.pth"
    saved = torch.load(file, weights_only=True)["model"]
    assert saved.keys() == before.keys()
    assert any(not torch.equal(saved[name], before[name]) for name in before)
    tower = load_tower("ViT-Ti-8-emoji", str(file))
    assert all(torch.equal(value, saved[name]) for name, value in tower.state_dict().items())
    detector = build_model(emoji_cfg("fvit_untouched", "MODEL.CLIP.WEIGHTS", str(file)))
    assert any(
        value.shape == saved["visual.conv1.weight"].shape
        and torch.equal(value, saved["visual.conv1.weight"])
        for value in detector.state_dict().values()
    )


def test_an_rpn_at_work_gives_the_regions_of_a_run(keys, emoji_cfg, tmp_path) -> None:
    config = Path(__file__).parents[2] / "configs" / "emoji" / "rpn.yaml"
    network = build_model(emoji_cfg("rpn"))
    torch.save({"model": network.state_dict()}, tmp_path / "rpn.pth")
    own = ["INPUT.REGIONS.SOURCE", "rpn", "MODEL.FROZEN_RPN.CONFIG", str(config)]
    own += ["MODEL.FROZEN_RPN.WEIGHTS", str(tmp_path / "rpn.pth"), "INPUT.REGIONS.MAX_BOXES", 5]
    cfg = emoji_cfg("regionclip", *keys, *own)
    # The file of the network names weights that this test has not.
    cfg.MODEL.CLIP.PRETRAINED = ""
    model = build_model(cfg).train()
    batch = next(iter(build_distill_train_loader_from_cfg(cfg)))
    assert all("boxes" not in item for item in batch)
    with EventStorage(0) as storage:
        losses = model(batch)
        assert storage.latest()["regionclip/num_regions"][0] == 10
    assert set(losses) == LOSSES


@pytest.mark.parametrize("name", ABLATIONS)
def test_an_ablation_changes_what_it_names(name: str) -> None:
    cfg = load_config(str(FOLDER / "ablations" / f"{name}.yaml"), [])
    keys = cfg.MODEL.REGIONCLIP
    expected = {
        "supervision_region_text": [1, 1, 0],
        "supervision_image_text": [0, 0, 1],
        "losses_contrastive": [0, 1, 1],
        "losses_distill": [1, 0, 1],
    }
    assert expected.get(name, [1, 1, 1]) == keys.LOSS_WEIGHTS
    assert (cfg.INPUT.REGIONS.SOURCE == "random") == (name == "regions_random")
    assert (keys.TEACHER_NAME != "") == (name == "teacher_rn50x4_student_rn50")
    assert keys.CONCEPTS.endswith("cc3m.txt") == name.endswith("pool_cc3m")
    assert name in cfg.OUTPUT_DIR


@pytest.fixture
def build_tiny(make_regionclip, monkeypatch, tmp_path):
    """Function from a recipe to its pre-trainer with tiny towers and a tiny proposal network."""

    def load_tiny(*_: object, **__: object) -> SimpleNamespace:
        model = make_regionclip(resnet=True)
        return SimpleNamespace(tower=model.student, text=model.text)

    for loader in ("load_clip", "load_whole_clip"):
        monkeypatch.setattr(regionclip_build, loader, load_tiny)
    names = [f"concept {number}" for number in range(10)]
    monkeypatch.setattr(ConceptPool, "load", lambda _: ConceptPool(tuple(names), (1,) * 10))
    rows = torch.randn(10, 24, generator=torch.Generator().manual_seed(0))
    table = TextEmbeddings(
        Vocabulary.from_names(names), F.normalize(rows, dim=1), None, "tiny", "single"
    )
    monkeypatch.setattr(TextEmbeddings, "load_or_build", lambda *_, **__: table)

    def build(recipe: str) -> RegionCLIPPretrainer:
        cfg = load_config(str(FOLDER / f"{recipe}.yaml"), ["MODEL.DEVICE", "cpu"])
        (tmp_path / "rpn.yaml").write_text(TINY_RPN)
        own = cfg.MODEL.FROZEN_RPN
        own.CONFIG, own.WEIGHTS = str(tmp_path / "rpn.yaml"), ""
        network = build_frozen_proposals(cfg)
        torch.save({"model": network.state_dict()}, tmp_path / "rpn.pth")
        own.WEIGHTS = str(tmp_path / "rpn.pth")
        return build_model(cfg)

    return build


@pytest.mark.parametrize(
    "recipe", ["pretrain_rn50", "pretrain_rn50x4", *(f"ablations/{name}" for name in ABLATIONS)]
)
def test_a_recipe_takes_a_step_with_tiny_towers(build_tiny, make_item, recipe: str) -> None:
    model = build_tiny(recipe).train()
    items = [make_item(seed) for seed in (0, 1)]
    if model.proposer is not None:
        items = [{k: v for k, v in item.items() if k not in ("boxes", "crops")} for item in items]
    losses = model(items)
    assert (model.temperature, model.concept_threshold) == (0.01, 0.1)
    weights = {
        "loss_region_distill": model.weights.distill,
        "loss_concept": model.weights.contrastive,
        "loss_image_text": model.weights.image_text,
    }
    assert set(losses) == {name for name, weight in weights.items() if weight}
    sum(losses.values()).backward()
    trained = [p for p in model.student.parameters() if p.requires_grad]
    assert trained
    assert all(torch.isfinite(p.grad).all() for p in trained)
    assert (model.proposer is None) == recipe.endswith("regions_random")


def test_there_is_an_ablation_for_each_of_the_papers_tables() -> None:
    stems = {path.stem.partition("_")[0] for path in (FOLDER / "ablations").glob("*.yaml")}
    assert stems == {"supervision", "regions", "data", "losses", "teacher", "focal"}


def test_focal_scaling_is_switched_off_in_transfer_alone() -> None:
    base, off, plain = (
        load_config(str(FOLDER / f"{name}.yaml"), []).MODEL.OPEN_VOCAB
        for name in (
            *("transfer_coco_rn50", "ablations/focal_scaling_off"),
            "ablations/focal_scaling_off_background_1",
        )
    )
    assert [options.FOCAL_GAMMA for options in (base, off, plain)] == [0.5, 0.0, 0.0]
    assert [options.BACKGROUND_WEIGHT for options in (base, off, plain)] == [0.2, 0.2, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rn50", "rn50x4", "vitb16"])
def test_a_recipe_takes_a_step_with_its_own_tower(name, keys, tmp_path) -> None:
    cfg = load_config(str(FOLDER / f"pretrain_{name}.yaml"), [])
    cfg.merge_from_list([*keys, "MODEL.DEVICE", "cpu", "MODEL.CLIP.PRETRAINED", ""])
    cfg.merge_from_list(["SOLVER.IMS_PER_BATCH", 2, "INPUT.REGIONS.IMAGE_SIZES", (96,)])
    cfg.merge_from_list(["INPUT.REGIONS.MAX_BOXES", 3, "DATALOADER.NUM_WORKERS", 0])
    cfg.merge_from_list(["INPUT.REGIONS.SOURCE", "proposals", "OUTPUT_DIR", str(tmp_path)])
    torch.manual_seed(0)
    model = build_model(cfg).train()
    maker = DistillTrainer if cfg.SOLVER.OPTIMIZER == "AdamW" else Trainer
    optimizer = maker.build_optimizer(cfg, model)
    losses = model(next(iter(build_distill_train_loader_from_cfg(cfg))))
    assert set(losses) == LOSSES
    sum(losses.values()).backward()
    if name == "rn50":
        # microsoft/RegionCLIP trains 51 tensors with 38.02 million numbers.
        trained = [p for p in model.parameters() if p.requires_grad]
        assert len(trained) == 51
        assert round(sum(p.numel() for p in trained) / 1e6, 2) == 38.02
    optimizer.step()
    assert all(torch.isfinite(value).all() for value in model.student.state_dict().values())
