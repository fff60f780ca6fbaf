"""Weights that come with the package find the right emoji, and are the files that were measured."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch

from clipself_d2 import OpenVocabPredictor, model_zoo
from clipself_d2.apps.analysis.heat_maps import dense_map, similarity_maps
from clipself_d2.apps.emoji.first_look import STUDENT, render_picture
from clipself_d2.model_zoo.checkpoints import pack_checkpoint
from clipself_d2.parts.shipped_weights import FOLDER

SUMS = {
    "emoji/clipself_proposals": "b725fd4088e763de35e5841c21725f4af5b19739a0688c2b04212e54cb7aa663",
    "emoji/fvit_clipself": "f090b11aa0a96a765cd788360690a6e7f96de63628a371ef78c6922b8c384e9d",
    "emoji/ov_panoptic_clipself": (
        "ed43398e81a11678c462a76ed4c5d719a522691e4cbf13e2e00d96e0bab5a933"
    ),
}
# Scene 10 has a cat above a broccoli, and no dog.
WORDS, SEED = ["broccoli", "cat", "dog"], 10


def test_the_files_are_small_and_those_that_were_measured() -> None:
    files = {
        path.relative_to(FOLDER).with_suffix("").as_posix(): path for path in FOLDER.rglob("*.pth")
    }
    assert {
        name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()
    } == SUMS
    for name, path in files.items():
        content = torch.load(path, weights_only=True)
        assert path.stat().st_size < 5e6
        assert content["recipe"] == f"{name}.yaml"
        assert {"cat", "broccoli"} < set(content["classes"])
        (form,) = content["dense_form"].values()
        assert form["MODEL.CLIP.NAME"] == "ViT-Ti-8-emoji"


def test_the_detector_finds_what_is_in_a_scene_and_nothing_else() -> None:
    detector = OpenVocabPredictor(
        model_zoo.get_config_file("emoji/fvit_clipself.yaml"),
        model_zoo.get_checkpoint_url("emoji/fvit_clipself.yaml"),
        overrides=["MODEL.DEVICE", "cpu"],
        min_score=0.5,
    )
    detector.set_classes(WORDS)
    found = detector(np.asarray(render_picture(SEED)))["instances"]
    assert {WORDS[number] for number in found.pred_classes.tolist()} == {"broccoli", "cat"}
    (broccoli,) = found[found.pred_classes == 0].pred_boxes.tensor
    assert 100 < float(broccoli[0]) < float(broccoli[2]) < 190


def test_the_student_is_most_like_a_word_where_its_thing_is() -> None:
    tower = STUDENT.load()
    maps = similarity_maps(
        dense_map(tower, render_picture(SEED)), STUDENT.embed(WORDS).embeddings_KD
    )
    row, column = divmod(int(maps[0].argmax()), maps.shape[2])
    assert 100 < column * tower.patch_size < 190
    assert float(maps[2].max()) < float(maps[0].max())


def test_a_packed_checkpoint_is_the_same_model_every_time(tmp_path: Path) -> None:
    recipe = "emoji/fvit_untouched.yaml"
    model = model_zoo.get(recipe, ["MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu"])
    run = {"model": model.state_dict(), "dense_form": {}, "optimizer": {}, "run": {"id": "a"}}
    torch.save(run, tmp_path / "run.pth")
    written = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        pack_checkpoint(tmp_path / "run.pth", tmp_path / name / "model.pth", config_path=recipe)
        written.append((tmp_path / name / "model.pth").read_bytes())
    assert written[0] == written[1]
    content = torch.load(tmp_path / "a" / "model.pth", weights_only=True)
    assert set(content) == {"model", "dense_form", "recipe", "classes"}
    for name, value in model.state_dict().items():
        torch.testing.assert_close(content["model"][name].float(), value, rtol=1e-3, atol=1e-7)


def test_an_address_of_nothing_is_refused_by_the_names_that_there_are() -> None:
    with pytest.raises(FileNotFoundError, match="come with the package; these do: .*fvit_clipself"):
        model_zoo.get("emoji/cris.yaml", trained=True)
