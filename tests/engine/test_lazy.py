"""Lazy recipes: overrides that do not fit are refused, and a run gives weights and scores."""

from pathlib import Path

import pytest
import torch

from clipself_d2.engine.lazy import (
    build_lazy_model,
    load_lazy_config,
    score_lazy,
    train_lazy,
)

FOLDER = Path(__file__).parents[2] / "configs" / "plug_in"
FCOS = str(FOLDER / "fcos.py")


def test_overrides_change_the_config():
    cfg = load_lazy_config(FCOS, ["train.max_iter=3", "+train.comment=mine"])
    assert cfg.train.max_iter == 3
    assert cfg.train.comment == "mine"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["train.max_itr=3"], "train.max_itr"),
        (["train.max_iter"], "key=value"),
        (["model.backbone.stride=[4]"], "model.backbone.stride"),
    ],
)
def test_a_key_that_is_not_there_is_refused(overrides, message):
    with pytest.raises(ValueError, match=message):
        load_lazy_config(FCOS, overrides)


def test_files_that_are_no_lazy_configs_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="--config-file"):
        load_lazy_config(str(FOLDER / "retinanet.yaml"), [])
    with pytest.raises(FileNotFoundError, match="nowhere.py"):
        load_lazy_config("nowhere.py", [])
    half = tmp_path / "half.py"
    half.write_text("model = dict(a=1)\n")
    with pytest.raises(ValueError, match="does not define dataloader, optimizer"):
        load_lazy_config(str(half), [])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.head_in_features=[p3,p8]", "feature 'p8'"),
        ("model.pixel_mean=[104.1,116.7,122.8]", r"model\.pixel_mean is .* in the order BGR"),
        ("dataloader.test.mapper.image_format=BGR", r"test\.mapper\.image_format is BGR"),
        ("model.backbone.top_block.in_feature=p9", r"top_block\.in_feature is 'p9'"),
    ],
)
def test_parts_that_do_not_fit_are_refused(override, message):
    with pytest.raises(ValueError, match=message) as refusal:
        build_lazy_model(load_lazy_config(FCOS, [override]))
    assert "\n" not in str(refusal.value)


def test_strides_of_the_pooler_are_powers_of_two():
    cfg = load_lazy_config(str(FOLDER / "vitdet_mask_rcnn.py"), [])
    cfg.model.roi_heads.box_pooler.scales = [0.3, 0.15, 0.075, 0.0375]
    with pytest.raises(ValueError, match=r"model\.roi_heads\.box_pooler\.scales"):
        build_lazy_model(cfg)


def test_training_gives_weights_and_scores_and_goes_on(emoji_data, tmp_path):
    cfg = load_lazy_config(
        FCOS,
        [f"train.output_dir={tmp_path}", "train.max_iter=1", "dataloader.train.num_workers=0"]
        + ["dataloader.test.num_workers=0", "model.head.conv_dims=[32]", "model.num_classes=80"],
    )
    cfg.model.test_score_thresh = 0.0
    results = train_lazy(cfg)
    assert set(results) == {"bbox"}
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert saved["iteration"] == 0
    cfg.train.max_iter = 2
    train_lazy(cfg, resume=True)
    again = torch.load(tmp_path / "model_final.pth", weights_only=False)
    assert again["iteration"] == 1


def test_without_an_evaluator_there_is_nothing_to_score():
    cfg = load_lazy_config(FCOS, [])
    del cfg.dataloader.evaluator
    assert score_lazy(cfg, torch.nn.Identity()) == {}
