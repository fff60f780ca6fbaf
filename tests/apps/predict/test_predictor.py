"""Words in, boxes out: pictures in any form, batches, and classes that come and go."""

import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.structures import Instances
from PIL import Image

import clipself_d2
from clipself_d2.apps.files.text_embeddings import resolve_vocabulary
from clipself_d2.apps.predict.predictor import OpenVocabPredictor
from clipself_d2.apps.predict.prompts import ClassPrompt
from clipself_d2.apps.predict.slices import SlicePlan
from clipself_d2.clip import model as clip_model
from clipself_d2.engine.trainer import Trainer
from clipself_d2.layers import TextClassifier
from clipself_d2.vocabulary import Vocabulary


def same(one: Instances, other: Instances) -> bool:
    return (
        torch.equal(one.scores, other.scores)
        and torch.equal(one.pred_classes, other.pred_classes)
        and torch.equal(one.pred_boxes.tensor, other.pred_boxes.tensor)
    )


def test_threads_share_a_predictor(detector_cfg, weights: Path, pictures: list[Path]) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    predictor.set_classes(["dog", "police car"])
    alone = {picture: predictor(picture)["instances"] for picture in pictures[:2]}

    def ask(number: int) -> bool:
        picture = pictures[number % 2]
        return same(predictor(picture)["instances"], alone[picture])

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(ask, range(8)))
    assert classes_of(predictor.model) == 80


def classes_of(model: torch.nn.Module) -> int:
    (classifier,) = (part for part in model.modules() if isinstance(part, TextClassifier))
    return len(classifier.get_embeddings()[0])


@pytest.mark.parametrize("name", ["fvit_untouched", "cascade", "retinanet", "fcos"])
def test_classes_can_be_changed_and_come_back(
    name: str, detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(name), weights)
    trained = predictor(pictures[0])["instances"]
    assert len(predictor.names) == 80
    found = []
    for words in (["dog", "police car"], ["apple"], ["dog", "police car"]):
        predictor.set_classes(words)
        assert predictor.names == tuple(words)
        found.append(predictor(pictures[0])["instances"])
    assert len(found[0]) > 0
    assert same(found[0], found[2])
    assert not same(found[0], trained)
    assert found[0].pred_classes.max() <= 1
    assert found[1].pred_classes.max() == 0


def test_every_form_of_a_picture_gives_the_same(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    cfg = detector_cfg()
    predictor = OpenVocabPredictor(cfg, weights)
    bgr_predictor = OpenVocabPredictor(cfg, weights, array_format="BGR")
    image = Image.open(pictures[0]).convert("RGB")
    array = np.asarray(image)
    expected = predictor(str(pictures[0]))["instances"]
    assert expected.image_size == array.shape[:2]
    assert same(predictor(image)["instances"], expected)
    assert same(predictor(array)["instances"], expected)
    assert same(bgr_predictor(array[:, :, ::-1])["instances"], expected)
    assert not same(bgr_predictor(array)["instances"], expected)


def test_a_batch_gives_what_each_picture_gives_alone(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights, batch_size=2)
    arrays = [np.asarray(Image.open(path).convert("RGB")) for path in pictures]
    # Every second one has another form and would be padded with its neighbours.
    mixed = [arrays[0], arrays[1][:100], arrays[2], arrays[3][:100], arrays[1]]
    sizes = []
    forward = predictor.model.forward
    predictor.model.forward = lambda items: sizes.append(len(items)) or forward(items)
    together = predictor(mixed)
    assert sorted(sizes) == [1, 2, 2]
    for got, array in zip(together, mixed, strict=True):
        alone = predictor(array)["instances"]
        assert got["instances"].image_size == array.shape[:2]
        assert len(got["instances"]) == len(alone)
        torch.testing.assert_close(got["instances"].scores, alone.scores, atol=1e-5, rtol=1e-4)
    assert predictor([]) == []


def test_synonyms_are_averaged_with_the_name_and_unseen_ones_warned_of(
    detector_cfg, weights: Path, pictures: list[Path], caplog: pytest.LogCaptureFixture
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    found = []
    with caplog.at_level("WARNING", logger="clipself_d2"):
        for entry in ("dog", "dog;wombat"):
            predictor.set_classes([entry, "apple"])
            found.append(predictor(pictures[0])["instances"])
            assert predictor.names == ("dog", "apple")
    assert not same(*found)
    assert "wombat" in caplog.text


def test_a_vocabulary_keeps_its_novel_classes(detector_cfg, weights: Path) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    predictor.set_classes(Vocabulary.from_names(["dog", "owl"], novel=["owl"]))
    with predictor._vocabulary(predictor.prompts):
        classifier = predictor.model.roi_heads.box_predictor.classifier
        assert classifier.base_mask.tolist() == [True, False]


def test_a_detector_without_text_keeps_its_classes(
    detector_cfg, weights: Path, emoji_cfg, tmp_path: Path
) -> None:
    cfg = emoji_cfg("fvit_untouched", "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    predictor = OpenVocabPredictor(cfg, weights)
    with pytest.raises(ValueError, match="no text classifier: it knows the 80 classes"):
        predictor.set_classes(["dog"])
    predictor.set_classes(Vocabulary.from_names(predictor.names))


@pytest.mark.parametrize(
    ("picture", "message"),
    [
        (np.zeros((4, 4), np.uint8), r"\(H, W, 3\) uint8 in RGB, got \(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), "float32"),
        (np.zeros((0, 4, 3), np.uint8), r"got \(0, 4, 3\)"),
        (Image.new("F", (4, 4)), "image given as Image .*pixels of mode F"),
        (Image.new("RGB", (5000, 1)), "image given as Image of 5000 x 1 px cannot be scaled"),
        (7, "a picture is a file"),
    ],
)
def test_other_pictures_are_refused(
    picture: object, message: str, detector_cfg, weights: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        OpenVocabPredictor(detector_cfg(), weights)(picture)


@pytest.mark.parametrize("opened", [False, True])
def test_a_damaged_picture_is_named(
    opened: bool, detector_cfg, weights: Path, pictures: list[Path], tmp_path: Path
) -> None:
    file = tmp_path / "cut.jpg"
    file.write_bytes(pictures[0].read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cut\.jpg cannot be decoded"):
        OpenVocabPredictor(detector_cfg(), weights)(Image.open(file) if opened else file)


def test_faulty_options_are_refused(emoji_cfg, tmp_path: Path) -> None:
    cfg = emoji_cfg("fvit_untouched")
    with pytest.raises(ValueError, match=r"MODEL\.WEIGHTS is empty"):
        OpenVocabPredictor(cfg)
    with pytest.raises(FileNotFoundError, match=r"gone\.pth does not exist"):
        OpenVocabPredictor(cfg, tmp_path / "gone.pth")
    with pytest.raises(FileNotFoundError, match=r"gone\.yaml"):
        OpenVocabPredictor(tmp_path / "gone.yaml", tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="RGB or BGR"):
        OpenVocabPredictor(cfg, array_format="RGBA")
    with pytest.raises(ValueError, match="batch size is 0; give at least 1"):
        OpenVocabPredictor(cfg, batch_size=0)
    with pytest.raises(ValueError, match=r"least score is 1\.5"):
        OpenVocabPredictor(cfg, min_score=1.5)


def test_the_package_names_the_predictor(python: str) -> None:
    assert clipself_d2.OpenVocabPredictor is OpenVocabPredictor
    with pytest.raises(AttributeError, match="no attribute 'Predictor'"):
        clipself_d2.Predictor  # noqa: B018


def test_only_the_embedded_clip_is_asked_for_unseen_words_and_once(
    detector_cfg, weights: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    embedded, create, created = predictor.cfg.MODEL.CLIP.NAME, clip_model._create, []

    def count(name: str, tag: str | None):
        created.append(name)
        return create(name, tag)

    monkeypatch.setattr(clip_model, "_create", count)
    monkeypatch.setattr(
        "clipself_d2.apps.predict.predictor.read_text_embeddings", lambda *_, **__: None
    )
    predictor.cfg.MODEL.CLIP.NAME = "ViT-B-32"
    predictor.set_classes(["dog", "wombat"])
    assert created == []
    predictor.cfg.MODEL.CLIP.NAME = embedded
    with caplog.at_level("WARNING", logger="clipself_d2"):
        predictor.set_classes(["police car"])
        assert "never read" not in caplog.text
        predictor.set_classes(["dog;wombat"])
    assert "never read the words wombat" in caplog.text
    assert created == [embedded]


def test_paths_of_the_home_folder_are_found(
    detector_cfg, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(weights.parent))
    cfg = detector_cfg()
    OpenVocabPredictor(cfg, f"~/{weights.name}")
    cfg.MODEL.WEIGHTS = f"~/{weights.name}"
    OpenVocabPredictor(cfg)


@pytest.mark.slow
def test_importing_the_package_does_not_import_the_predictor(python: str) -> None:
    code = "import sys, clipself_d2; sys.exit('clipself_d2.apps.predict.predictor' in sys.modules)"
    assert subprocess.run([python, "-c", code], check=False).returncode == 0


def test_zero_shot_detectors_need_no_checkpoint_of_their_own(emoji_cfg) -> None:
    cfg = emoji_cfg("regionclip_zeroshot_gt")
    assert not cfg.MODEL.WEIGHTS
    predictor = OpenVocabPredictor(cfg)
    assert type(predictor.model).__name__ == "OfflineProposalRCNN"


def test_one_slice_gives_what_one_pass_gives(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    whole = predictor(pictures[0])["instances"]
    side = max(whole.image_size)
    assert same(predictor(pictures[0], slices=SlicePlan(side))["instances"], whole)
    several = predictor(pictures[0], slices=SlicePlan(side // 2))["instances"]
    assert several.image_size == whole.image_size
    assert not same(several, whole)
    assert several.pred_boxes.tensor.min() >= 0


def test_prompt_free_means_a_built_in_list(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights)
    predictor.set_classes(resolve_vocabulary("lvis_v1"))
    assert len(predictor.names) == 1203
    assert predictor(pictures[0])["instances"].pred_classes.max() < 1203


def test_a_lenient_class_lowers_the_models_threshold_for_the_call(
    detector_cfg, weights: Path, pictures: list[Path]
) -> None:
    predictor = OpenVocabPredictor(detector_cfg(), weights, min_score=0.99)
    predictor.set_classes(["dog", ClassPrompt("owl", min_score=0.0)])
    found = predictor(pictures[0])["instances"]
    assert set(found.pred_classes.tolist()) == {1}
    assert predictor.model.roi_heads.box_predictor.test_score_thresh == 0.0
