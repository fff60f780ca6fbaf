"""configs/plug_in: Detectron2's detectors take the backbones, train a step and are scored."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer
from detectron2.model_zoo import get_config_file
from detectron2.modeling import build_model
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config
from omegaconf import DictConfig

from clipself_d2.backbones.levels import PyramidBackbone
from clipself_d2.config import add_clipself_config
from clipself_d2.data.datasets import register_emoji_semantic
from clipself_d2.engine.lazy import train_lazy
from clipself_d2.engine.trainer import Trainer

FOLDER = Path(__file__).parents[2] / "configs" / "plug_in"
YAML = sorted(path.stem for path in FOLDER.glob("*.yaml") if not path.stem.startswith("Base"))
LAZY = sorted(path.stem for path in FOLDER.glob("*.py"))
SEMANTIC = [f"emoji_{task}_{s}" for task in ("semantic", "panoptic_fpn") for s in ("train", "val")]


@pytest.fixture
def semantic_data(emoji_data: Path) -> Iterator[Path]:
    """The data sets with semantic maps read the tiny folder while the test runs."""
    _forget()
    register_emoji_semantic(emoji_data)
    yield emoji_data
    _forget()
    register_emoji_semantic("datasets")


def _forget() -> None:
    for name in SEMANTIC:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


def read_yaml(name: str) -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_deeplab_config(cfg)
    add_clipself_config(cfg)
    cfg.merge_from_file(str(FOLDER / f"{name}.yaml"))
    # Thinner heads, which the backbones know nothing of.
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 10
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS, cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 32, 8
    cfg.MODEL.CLIP.PRETRAINED = ""
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


def read_lazy(name: str, output: Path) -> DictConfig:
    cfg = LazyConfig.load(str(FOLDER / f"{name}.py"))
    cfg.dataloader.train.num_workers = cfg.dataloader.test.num_workers = 0
    cfg.train.output_dir, cfg.train.max_iter = str(output), 1
    return cfg


def test_there_is_an_example_of_each_detector():
    assert len(YAML) >= 11
    assert len(LAZY) >= 4


def test_the_six_lines_of_the_page_fit_over_a_stock_config(tmp_path):
    page = (FOLDER.parents[1] / "docs" / "plug_in.md").read_text(encoding="utf-8")
    block = next(part for part in page.split("```") if part.startswith("\nMODEL: {"))
    assert len(block.strip().splitlines()) == 5
    assert "\nimport clipself_d2 " in page
    (tmp_path / "mine.yaml").write_text(block, encoding="utf-8")
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"))
    cfg.merge_from_file(str(tmp_path / "mine.yaml"))
    cfg.merge_from_list(["MODEL.DEVICE", "cpu", "MODEL.CLIP.NAME", "ViT-Ti-8-emoji"])
    cfg.MODEL.CLIP.PRETRAINED = ""
    assert isinstance(build_model(cfg).backbone, PyramidBackbone)


def test_detectron2s_own_training_loop_needs_the_import_alone(semantic_data, tmp_path):
    # What Detectron2's tools/train_net.py does with its flags.
    cfg = get_cfg()
    cfg.merge_from_file(str(FOLDER / "semantic_fpn.yaml"))
    cfg.merge_from_list(["OUTPUT_DIR", str(tmp_path), "SOLVER.MAX_ITER", "1"])
    cfg.merge_from_list(["MODEL.CLIP.PRETRAINED", "", "DATALOADER.NUM_WORKERS", "0"])
    cfg.merge_from_list(["DATASETS.TEST", "()", "MODEL.FPN.OUT_CHANNELS", "32"])
    cfg.freeze()
    trainer = DefaultTrainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert isinstance(trainer.model.backbone, PyramidBackbone)
    assert (tmp_path / "model_final.pth").is_file()


@pytest.mark.parametrize("name", YAML)
def test_yaml_example_changes_the_backbone_and_runs(name):
    torch.manual_seed(0)
    model = build_model(read_yaml(name)).eval()
    assert hasattr(model.backbone, "tower") or isinstance(model.backbone, PyramidBackbone)
    image = torch.randint(0, 256, (3, 50, 70)).float()
    with torch.no_grad():
        found = model([{"image": image, "height": 100, "width": 140}])[0]
    if "sem_seg" in found:
        assert found["sem_seg"].shape[1:] == (100, 140)
        assert found["sem_seg"].isfinite().all()
    if "instances" in found:
        assert found["instances"].image_size == (100, 140)
        assert found["instances"].scores.isfinite().all()
    assert set(found) & {"sem_seg", "instances"}


@pytest.mark.parametrize("name", LAZY)
def test_lazy_example_changes_the_backbone_and_runs(name, tmp_path):
    torch.manual_seed(0)
    cfg = read_lazy(name, tmp_path).model
    if "proposal_generator" in cfg:
        cfg.proposal_generator.post_nms_topk = [10, 10]
    model = instantiate(cfg).eval()
    assert isinstance(model.backbone, PyramidBackbone)
    image = torch.randint(0, 256, (3, 50, 70)).float()
    with torch.no_grad():
        found = model([{"image": image, "height": 100, "width": 140}])[0]["instances"]
    assert found.image_size == (100, 140)
    assert found.scores.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", YAML)
def test_yaml_example_trains_every_parameter_and_is_scored(name, semantic_data, tmp_path):
    cfg = read_yaml(name)
    cfg.OUTPUT_DIR, cfg.SOLVER.MAX_ITER = str(tmp_path), 1
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    untouched = [
        key for key, p in trainer.model.named_parameters() if p.requires_grad and p.grad is None
    ]
    assert untouched == []
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    scores = results[cfg.DATASETS.TEST[0]]
    assert {"bbox", "segm", "sem_seg"} & set(scores)


@pytest.mark.slow
@pytest.mark.parametrize("name", LAZY)
def test_lazy_example_trains_a_step_and_is_scored(name, semantic_data, tmp_path):
    results = train_lazy(read_lazy(name, tmp_path))
    assert "bbox" in results
    assert (tmp_path / "model_final.pth").is_file()
