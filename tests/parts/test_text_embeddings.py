"""Text embeddings from a config: where classes come from, and which key an error names."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances

from clipself_d2.config import add_clipself_config
from clipself_d2.parts.text_embeddings import (
    build_text_classifier,
    dataset_embeddings,
    read_text_embeddings,
    training_embeddings,
    training_vocabulary,
    warn_of_doubtful_names,
)
from clipself_d2.vocabulary import TextEmbeddings, Vocabulary, embeddings

LOGGER = "clipself_d2.parts.text_embeddings"
PETS = Vocabulary.from_names(["cat", "dog", "owl"], novel=["owl"])


@pytest.fixture
def cfg() -> Iterator[CfgNode]:
    """Config whose training set has the classes of ``PETS``; catalogs are restored."""
    data_sets, metadata = DatasetCatalog.list(), MetadataCatalog.list()
    MetadataCatalog.get("text_pets").set(thing_classes=["cat", "dog", "owl"], novel_classes=["owl"])
    config = get_cfg()
    add_clipself_config(config)
    config.DATASETS.TRAIN = ("text_pets",)
    config.MODEL.CLIP.NAME = "ViT-Ti-8-emoji"
    config.MODEL.CLIP.PRETRAINED = "emoji"
    config.MODEL.VOCABULARY.TEMPLATES = "emoji"
    config.MODEL.DEVICE = "cpu"
    yield config
    for name in set(DatasetCatalog.list()) - set(data_sets):
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog.list()) - set(metadata):
        MetadataCatalog.remove(name)


def random_embeddings(vocabulary: Vocabulary = PETS, **options: str) -> TextEmbeddings:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(vocabulary.num_classes + 1, 8, generator=generator)
    rows = F.normalize(rows, dim=1)
    made_from = {"clip": "ViT-Ti-8-emoji", "templates": "emoji", "weights": "emoji", **options}
    return TextEmbeddings(vocabulary, rows[:-1], rows[-1], **made_from)


def give(cfg: CfgNode, stored: TextEmbeddings, folder: Path) -> None:
    """Save embeddings and name their file in a config."""
    stored.save(folder / "text.pt")
    cfg.MODEL.VOCABULARY.EMBEDDINGS = str(folder / "text.pt")


def test_data_set_of_the_vocabulary_goes_before_the_first_training_set(cfg: CfgNode) -> None:
    assert training_vocabulary(cfg) == PETS
    MetadataCatalog.get("text_tools").thing_classes = ["saw"]
    cfg.MODEL.VOCABULARY.DATASET = "text_tools"
    assert training_vocabulary(cfg).names == ("saw",)


def test_classes_that_only_the_annotations_tell_are_read(cfg: CfgNode, tmp_path: Path) -> None:
    file = tmp_path / "boxes.json"
    categories = [{"id": 3, "name": "saw"}, {"id": 7, "name": "axe"}]
    images = [{"id": 1, "file_name": "a.jpg", "width": 4, "height": 3}]
    file.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    register_coco_instances("text_coco", {}, str(file), str(tmp_path))
    cfg.DATASETS.TRAIN = ("text_coco",)
    assert training_vocabulary(cfg).names == ("saw", "axe")


def test_missing_data_sets_name_the_key(cfg: CfgNode) -> None:
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(ValueError, match=r"set MODEL\.VOCABULARY\.DATASET or DATASETS\.TRAIN"):
        training_vocabulary(cfg)
    cfg.DATASETS.TRAIN = ("text_typo",)
    with pytest.raises(ValueError, match=r"'text_typo' is not registered; check DATASETS\.TRAIN"):
        training_vocabulary(cfg)
    cfg.MODEL.VOCABULARY.DATASET = "text_typo"
    with pytest.raises(ValueError, match=r"check MODEL\.VOCABULARY\.DATASET"):
        training_vocabulary(cfg)
    assert "text_typo" not in MetadataCatalog.list()


def test_data_set_without_classes_is_refused(cfg: CfgNode) -> None:
    DatasetCatalog.register("text_images", lambda: [])
    cfg.MODEL.VOCABULARY.DATASET = "text_images"
    with pytest.raises(ValueError, match="text_images has no thing_classes"):
        training_vocabulary(cfg)


def test_config_tells_what_is_built(cfg: CfgNode, monkeypatch, caplog) -> None:
    asked = {}

    def load_or_build(vocabulary: Vocabulary, **options: object) -> TextEmbeddings:
        asked.update(options)
        return random_embeddings(vocabulary)

    monkeypatch.setattr(TextEmbeddings, "load_or_build", load_or_build)
    cfg.MODEL.VOCABULARY.CACHE_DIR = "kept"
    with caplog.at_level(logging.WARNING, LOGGER):
        assert training_embeddings(cfg).vocabulary == PETS
    expected = {"clip": "ViT-Ti-8-emoji", "weights": "emoji", "templates": "emoji"}
    assert asked == {**expected, "cache_dir": "kept", "device": "cpu"}
    assert caplog.records == []
    cfg.MODEL.CLIP.PRETRAINED = ""
    cfg.MODEL.VOCABULARY.CACHE_DIR = ""
    with caplog.at_level(logging.WARNING, LOGGER):
        training_embeddings(cfg)
    assert (asked["weights"], asked["cache_dir"]) == (None, None)
    assert "MODEL.CLIP.PRETRAINED is empty" in caplog.text


def test_embeddings_are_built_with_the_clip_of_the_config(cfg: CfgNode, monkeypatch) -> None:
    asked = []

    class Encoder:
        def encode(self, texts: list[str]) -> torch.Tensor:
            return F.normalize(torch.arange(1.0, 4.0 * len(texts) + 1).view(-1, 4), dim=1)

    def load_clip(*arguments: object) -> SimpleNamespace:
        asked.append(arguments)
        return SimpleNamespace(text=Encoder())

    monkeypatch.setattr(embeddings, "load_clip", load_clip)
    built = training_embeddings(cfg)
    assert asked == [("ViT-Ti-8-emoji", "emoji")]
    assert built.embeddings_KD.shape == (3, 4)


@pytest.mark.parametrize(("given", "warnings"), [(80, 0), (3, 0), (20, 1)])
def test_number_of_classes_in_the_config_is_ignored_with_one_warning(
    given: int, warnings: int, cfg: CfgNode, tmp_path: Path, caplog
) -> None:
    give(cfg, random_embeddings(), tmp_path)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = given
    with caplog.at_level(logging.WARNING, LOGGER):
        assert training_embeddings(cfg).vocabulary.num_classes == 3
    assert len(caplog.records) == warnings
    if warnings:
        assert "MODEL.ROI_HEADS.NUM_CLASSES 20 is ignored" in caplog.text


def test_given_file_keeps_the_split_of_the_data_set(cfg: CfgNode, tmp_path: Path) -> None:
    stored = random_embeddings(Vocabulary.from_names(PETS.names))
    give(cfg, stored, tmp_path)
    read = training_embeddings(cfg)
    assert read.vocabulary == PETS
    assert torch.equal(read.embeddings_KD, stored.embeddings_KD)


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        (random_embeddings(clip="EVA02-B-16"), r"come from EVA02-B-16.*MODEL\.CLIP\.NAME"),
        (random_embeddings(Vocabulary.from_names(["cat", "hound", "owl"])), "'hound' instead of"),
        (random_embeddings(Vocabulary.from_names(["cat", "dog"])), "2 classes.*has 3.*number"),
        (b"damaged", "text.pt are damaged"),
    ],
)
def test_given_file_that_does_not_fit_is_refused_with_the_remedy(
    stored: TextEmbeddings | bytes, complaint: str, cfg: CfgNode, tmp_path: Path
) -> None:
    file = tmp_path / "text.pt"
    if isinstance(stored, bytes):
        file.write_bytes(stored)
    else:
        stored.save(file)
    cfg.MODEL.VOCABULARY.EMBEDDINGS = str(file)
    with pytest.raises(ValueError, match=complaint) as raised:
        training_embeddings(cfg)
    assert "empty MODEL.VOCABULARY.EMBEDDINGS" in str(raised.value)


def test_a_prompt_set_that_is_unknown_names_the_key(cfg: CfgNode) -> None:
    cfg.MODEL.VOCABULARY.TEMPLATES = "vlid"
    with pytest.raises(ValueError, match=r"MODEL\.VOCABULARY\.TEMPLATES: prompt set 'vlid'"):
        training_embeddings(cfg)


def test_a_file_in_the_home_folder_is_found(cfg: CfgNode, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    random_embeddings().save(tmp_path / "text.pt")
    cfg.MODEL.VOCABULARY.EMBEDDINGS = "~/text.pt"
    assert training_embeddings(cfg).vocabulary == PETS


def test_tests_on_other_classes_have_theirs_built(cfg: CfgNode, tmp_path: Path, caplog) -> None:
    stored = random_embeddings(Vocabulary.from_names(["cat", "dog"]))
    give(cfg, stored, tmp_path)
    with caplog.at_level(logging.INFO, LOGGER):
        built = read_text_embeddings(cfg, PETS, same_names=False)
    assert built.vocabulary == PETS
    assert "other classes than the 3 to be scored" in caplog.text
    cat_and_dog = Vocabulary.from_names(["cat", "dog"], novel=["dog"])
    used = read_text_embeddings(cfg, cat_and_dog, same_names=False)
    assert torch.equal(used.embeddings_KD, stored.embeddings_KD)
    assert used.vocabulary == cat_and_dog
    random_embeddings(clip="EVA02-B-16").save(tmp_path / "text.pt")
    with pytest.raises(ValueError, match="come from EVA02-B-16"):
        read_text_embeddings(cfg, PETS, same_names=False)


def test_missing_given_file_names_the_key(cfg: CfgNode) -> None:
    cfg.MODEL.VOCABULARY.EMBEDDINGS = "nowhere.pt"
    with pytest.raises(FileNotFoundError, match=r"MODEL\.VOCABULARY\.EMBEDDINGS nowhere\.pt"):
        training_embeddings(cfg)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"weights": "/other/machine/emoji"}, None),
        ({"weights": "laion"}, "MODEL.CLIP.PRETRAINED is emoji"),
        ({"templates": "vild"}, "MODEL.VOCABULARY.TEMPLATES is emoji"),
    ],
)
def test_keys_that_a_given_file_overrides_are_warned_of(
    options: dict[str, str], key: str | None, cfg: CfgNode, tmp_path: Path, caplog
) -> None:
    give(cfg, random_embeddings(**options), tmp_path)
    with caplog.at_level(logging.WARNING, LOGGER):
        training_embeddings(cfg)
    assert len(caplog.records) == (key is not None)
    assert key is None or key in caplog.text


def test_classifier_has_the_classes_and_their_split() -> None:
    given = random_embeddings()
    classifier = build_text_classifier(
        given, background_mode="learned", scale=20.0, learn_scale=False
    )
    assert torch.equal(classifier.embeddings_KD, given.embeddings_KD)
    assert classifier.base_mask.tolist() == [True, True, False]
    assert torch.equal(classifier.learned_background.detach(), given.background_D)
    assert classifier.scale.item() == 20.0
    assert not classifier.scale.requires_grad


def test_embeddings_follow_the_names(cfg: CfgNode) -> None:
    two = read_text_embeddings(cfg, Vocabulary.from_names(["dog", "car"])).embeddings_KD
    swapped = read_text_embeddings(cfg, Vocabulary.from_names(["car", "dog"])).embeddings_KD
    torch.testing.assert_close(two, swapped.flip(0))


def test_embeddings_of_a_data_set_are_those_of_the_config(cfg: CfgNode) -> None:
    expected = training_embeddings(cfg)
    given = dataset_embeddings(
        "text_pets", clip="ViT-Ti-8-emoji", weights="emoji", templates="emoji"
    )
    assert given.vocabulary == expected.vocabulary
    assert torch.equal(given.embeddings_KD, expected.embeddings_KD)


def test_embeddings_of_an_unknown_data_set_name_it(cfg: CfgNode) -> None:
    with pytest.raises(ValueError, match=r"data set 'nowhere' is not registered"):
        dataset_embeddings("nowhere", clip="ViT-Ti-8-emoji")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["Dog", "rabbit", "dog"], "'Dog' = 'dog'"),
        (["police_car", "police car"], "'police_car' = 'police car'"),
        (["dog", "__Background__"], "'__Background__' reads as the background"),
    ],
)
def test_names_that_text_cannot_tell_apart_are_warned_of(cfg, names, words, caplog) -> None:
    read_text_embeddings(cfg, Vocabulary.from_names(names))
    assert words in caplog.text


def test_ordinary_names_are_not_warned_of(cfg: CfgNode, caplog) -> None:
    warn_of_doubtful_names(Vocabulary.from_names(["dog", "hot dog", "backgrounds"]))
    assert not caplog.records
