"""Lazy recipes: overrides that do not fit are refused, and a run gives weights and scores."""

import copy
import json
import signal
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from detectron2.config import LazyCall
from detectron2.data import MetadataCatalog
from detectron2.engine import SimpleTrainer

from clipself_d2.engine import lazy
from clipself_d2.engine.lazy import build_lazy_model, load_lazy_config, score_lazy, train_lazy
from clipself_d2.layers import TextClassifier

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


def test_a_resumed_run_equals_an_uninterrupted_one(words_cfg, tmp_path) -> None:
    words_cfg.train.max_iter, words_cfg.train.checkpointer.period = 3, 2
    del words_cfg.dataloader["evaluator"]
    torch.manual_seed(0)
    train_lazy(words_cfg)
    whole = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    torch.manual_seed(1)
    train_lazy(words_cfg, resume=True)
    resumed = torch.load(tmp_path / "model_final.pth", weights_only=True)["model"]
    half = torch.load(tmp_path / "model_0000001.pth", weights_only=True)["model"]
    assert all(torch.equal(value, resumed[key]) for key, value in whole.items())
    assert any(not torch.equal(value, half[key]) for key, value in whole.items())


@pytest.fixture
def words_cfg(emoji_data, tmp_path):
    """FCOS with text classes, made small."""
    cfg = load_lazy_config(
        str(FOLDER / "fcos_words.py"),
        [f"train.output_dir={tmp_path}", "train.max_iter=1", "dataloader.train.num_workers=0"]
        + ["dataloader.test.num_workers=0", "model.head.conv_dims=[32]"],
    )
    cfg.model.test_score_thresh, cfg.model.test_topk_candidates = 0.0, 50
    return cfg


def test_a_data_set_is_scored_with_its_own_words(words_cfg, tmp_path, monkeypatch, catalogs):
    model = build_lazy_model(words_cfg)
    classes = []

    def score(scored, loader, evaluator):
        classes.append(next(m for m in scored.modules() if isinstance(m, TextClassifier)))
        classes.append(classes[-1].embeddings_KD.clone())
        return {"bbox": {"AP": 1.0}}

    monkeypatch.setattr(lazy, "inference_on_dataset", score)
    MetadataCatalog.get("three_words").set(
        thing_classes=["dog", "car", "key"], evaluator_type="coco"
    )
    words_cfg.dataloader.evaluator = LazyCall(_evaluator)(dataset_name="three_words")
    score_lazy(words_cfg, model)
    classifier, during = classes
    assert len(during) == 3
    assert classifier.num_classes == 80
    written = json.loads((tmp_path / "results.json").read_text())
    assert written["three_words"]["bbox"] == {"AP": 1.0}
    assert written["three_words"]["protocol"]["clip"] == "ViT-Ti-8-emoji"


def _evaluator(dataset_name):
    return None


def test_weights_of_another_model_are_refused(words_cfg, tmp_path):
    torch.save({"model": {"head.classifier.nothing": torch.ones(2)}}, tmp_path / "other.pth")
    words_cfg.train.init_checkpoint = str(tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no parameter of this model"):
        train_lazy(words_cfg)


def test_evaluation_resumes_from_the_last_checkpoint(words_cfg, tmp_path, monkeypatch):
    as_read = copy.deepcopy(words_cfg)  # Training puts the model into the config.
    train_lazy(words_cfg)
    file = tmp_path / "results.json"
    trained = json.loads(file.read_text())
    file.unlink()
    args = Namespace(config_file="", opts=[], eval_only=True, resume=True, num_gpus=0)
    monkeypatch.setattr(lazy, "load_lazy_config", lambda *_: as_read)
    torch.manual_seed(9)
    lazy.run_lazy(args)
    assert json.loads(file.read_text()) == trained


def test_a_stopped_training_is_saved_and_goes_on(words_cfg, tmp_path, monkeypatch):
    words_cfg.train.max_iter = 3
    words_cfg.dataloader.pop("evaluator")
    step = SimpleTrainer.run_step

    def stopped(loop):
        if loop.iter == 1 and not (tmp_path / "last_checkpoint").exists():
            signal.raise_signal(signal.SIGINT)
        step(loop)

    monkeypatch.setattr(SimpleTrainer, "run_step", stopped)
    with pytest.raises(KeyboardInterrupt, match=r"after iteration 0 of 3.*--resume"):
        train_lazy(words_cfg)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000000.pth"
    words_cfg.train.seed = 3
    train_lazy(words_cfg, resume=True)
    content = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert content["iteration"] == 2
    assert content["run"]["config"]["train.seed"] == "3"


def test_without_an_evaluator_there_is_nothing_to_score():
    cfg = load_lazy_config(FCOS, [])
    del cfg.dataloader.evaluator
    assert score_lazy(cfg, torch.nn.Identity()) == {}
