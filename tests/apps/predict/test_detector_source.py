"""Detectors of LazyConfigs for the predictor and the demo."""

import json
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from clipself_d2.apps.predict.demo import choose_vocabulary, run_demo
from clipself_d2.apps.predict.detector_source import build_detector, read_detector_config
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.engine.lazy import build_lazy_model

FOLDER = Path(__file__).parents[3] / "configs" / "plug_in"
WORDS = str(FOLDER / "fcos_words.py")


@pytest.fixture
def config(emoji_data: Path) -> DictConfig:
    """FCOS with text classes and thin heads."""
    return read_detector_config(WORDS, ["model.head.conv_dims=[32]"])


@pytest.fixture
def weights(config: DictConfig, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    path = tmp_path / "model.pth"
    torch.save({"model": build_lazy_model(config).state_dict()}, path)
    return path


def test_a_lazy_detector_takes_words_and_gives_them_back(
    config: DictConfig, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(config, weights, min_score=0.0)
    assert len(predictor.names) == 80
    assert predictor.cfg.MODEL.CLIP.NAME == "ViT-Ti-8-emoji"
    assert predictor.cfg.MODEL.VOCABULARY.TEMPLATES == "emoji"
    trained = predictor(pictures[0])["instances"]
    predictor.set_classes(["dog", "police car;squad car"])
    first = predictor(pictures[0])["instances"]
    predictor.set_classes(["apple"])
    assert predictor(pictures[0])["instances"].pred_classes.max() == 0
    predictor.set_classes(["dog", "police car;squad car"])
    again = predictor(pictures[0])["instances"]
    assert len(first) > 0
    assert torch.equal(first.scores, again.scores)
    assert first.pred_classes.max() == 1
    assert trained.pred_classes.max() > 1


def test_the_checkpoint_of_the_config_is_the_default(config: DictConfig, weights: Path) -> None:
    config.train.init_checkpoint = str(weights)
    stored = torch.load(weights, weights_only=True)["model"]
    source = build_detector(config, None, [])
    assert not source.model.training
    for key, value in source.model.state_dict().items():
        assert torch.equal(value, stored[key]), key


def test_the_demo_reads_the_file_of_a_lazy_config(
    config: DictConfig, weights: Path, pictures: list[Path], tmp_path: Path
) -> None:
    config.train.init_checkpoint = str(weights)
    words = choose_vocabulary("custom", "dog,police car")
    written = run_demo(config, pictures[:1], tmp_path / "drawn", words, 0.0)
    assert [path.suffix for path in written] == [".png"]
    listed = json.loads((tmp_path / "drawn" / "detections.json").read_text())
    assert [entry["name"] for entry in listed["categories"]] == ["dog", "police car"]
    assert listed["annotations"]


def test_a_threshold_drops_what_is_below(
    config: DictConfig, weights: Path, pictures: list[Path]
) -> None:
    every = OpenVocabPredictor(config, weights, min_score=0.0)(pictures[0])["instances"]
    least = float(every.scores.median())
    kept = OpenVocabPredictor(config, weights, min_score=least)(pictures[0])["instances"]
    assert 0 < len(kept) < len(every)
    assert kept.scores.min() > least - 1e-6


def test_a_lazy_model_without_text_classes_is_refused(emoji_data: Path, weights: Path) -> None:
    closed = read_detector_config(FOLDER / "fcos.py", ["model.head.conv_dims=[32]"])
    with pytest.raises(ValueError, match="FCOS of this LazyConfig has no text classifier"):
        build_detector(closed, weights, [])


def test_what_is_missing_names_its_key(config: DictConfig, weights: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"train\.init_checkpoint is empty"):
        build_detector(config, None, [])
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        build_detector(config, tmp_path / "gone.pth", [])
    with pytest.raises(ValueError, match="overrides go with the file"):
        build_detector(config, weights, ["model.num_classes=3"])
    with pytest.raises(FileNotFoundError, match=r"gone\.py"):
        build_detector(tmp_path / "gone.py", weights, [])
    with pytest.raises(ValueError, match=r"model\.hed in 'model\.hed=1'"):
        build_detector(WORDS, weights, ["model.hed=1"])
    with pytest.raises(ValueError, match="it must be in"):
        OpenVocabPredictor(config, weights, min_score=1.5)
    del config.dataloader.test
    with pytest.raises(ValueError, match=r"dataloader\.test\.mapper\.augmentations"):
        build_detector(config, weights, [])


def test_yaml_and_lazy_files_are_told_apart(emoji_data: Path) -> None:
    yaml = read_detector_config(FOLDER / "retinanet.yaml", ["MODEL.DEVICE", "cpu"])
    assert yaml.MODEL.META_ARCHITECTURE == "RetinaNet"
    assert isinstance(read_detector_config(WORDS, []), DictConfig)
