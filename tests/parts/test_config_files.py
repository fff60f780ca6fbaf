from pathlib import Path

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import CfgNode, get_cfg
from detectron2.projects.deeplab import add_deeplab_config
from detectron2.projects.point_rend import add_pointrend_config

import clipself_d2  # noqa: F401
from clipself_d2.parts.config_files import merge_config_file, read_config_file

ROOT = Path(__file__).resolve().parents[2]
ZOO = Path(model_zoo.__file__).parent / "configs"


def defaults() -> CfgNode:
    cfg = get_cfg()
    add_pointrend_config(cfg)
    add_deeplab_config(cfg)
    return cfg


def check_same(file: Path) -> None:
    ours, theirs = defaults(), defaults()
    theirs.merge_from_file(str(file))
    merge_config_file(ours, file)
    assert repr(ours) == repr(theirs)
    assert type(ours.MODEL.RPN) is CfgNode


@pytest.mark.parametrize(
    "file",
    [
        ZOO / "COCO-Detection" / "retinanet_R_50_FPN_1x.yaml",
        ZOO / "COCO-PanopticSegmentation" / "panoptic_fpn_R_50_1x.yaml",
        ROOT / "configs" / "plug_in" / "retinanet.yaml",
        ROOT / "configs" / "emoji" / "fvit_clipself.yaml",
    ],
    ids=lambda file: file.stem,
)
def test_config_is_read_as_detectron2_reads_it(file):
    check_same(file)


@pytest.mark.slow
def test_every_config_of_the_zoo_and_of_the_project_is_read_as_detectron2_reads_it():
    files = [*ZOO.rglob("*.yaml"), *(ROOT / "configs").rglob("*.yaml")]
    assert len(files) > 150
    for file in files:
        check_same(file)


def test_old_version_is_upgraded_as_detectron2_does(tmp_path):
    file = tmp_path / "old.yaml"
    file.write_text("MODEL:\n  WEIGHT: a.pkl\n  RPN:\n    NMS_THRESH: 0.6\n")
    check_same(file)


def test_known_tags_give_numbers_tuples_and_files(tmp_path):
    file = tmp_path / "a.yaml"
    file.write_text(
        '_BASE_: !!python/object/apply:detectron2.model_zoo.get_config_file ["Base-RCNN-C4.yaml"]\n'
        'SOLVER:\n  MAX_ITER: !!python/object/apply:eval ["90000 // 4"]\n'
        "  STEPS: !!python/tuple [100, 200]\n"
    )
    cfg = get_cfg()
    merge_config_file(cfg, file)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS) == (22500, (100, 200))
    assert cfg.MODEL.ROI_HEADS.NAME == "Res5ROIHeads"
    assert read_config_file(file)["SOLVER"]["STEPS"] == [100, 200]


@pytest.mark.parametrize("base", ["_BASE_: a.yaml", "_BASE_: [a.yaml]", None])
def test_code_is_refused_with_file_and_line(tmp_path, base):
    file = tmp_path / "a.yaml"
    text = f'MODEL:\n  WEIGHTS: !!python/object/apply:os.mkdir ["{tmp_path}/ran"]\n'
    file.write_text(text)
    if base is not None:
        (tmp_path / "b.yaml").write_text(base)
    with pytest.raises(ValueError, match=r"a\.yaml is no yaml of plain data: .*mkdir.* in line 2"):
        merge_config_file(get_cfg(), tmp_path / "b.yaml" if base else file)
    assert not (tmp_path / "ran").exists()
    yaml.unsafe_load(text)
    assert (tmp_path / "ran").exists(), "the file would have run code"


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "MODEL", "a: [1", "a: \x00", "[" * 1100])
def test_other_content_is_one_sentence(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=r"a\.yaml (holds|is no yaml)") as caught:
        merge_config_file(get_cfg(), file)
    assert "\n" not in str(caught.value)


def test_failed_merge_leaves_the_config_as_it_was(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL:\n  WEIGHTS: x\n  NO_SUCH: 1\n")
    cfg = get_cfg()
    with pytest.raises(KeyError, match="NO_SUCH"):
        merge_config_file(cfg, tmp_path / "a.yaml")
    assert cfg == get_cfg()
