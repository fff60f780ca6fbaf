"""Weights that come with the package find the right emoji, and are the files that were measured."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from clipself_d2 import OpenVocabPredictor, model_zoo
from clipself_d2.apps.analysis.heat_maps import dense_map, similarity_maps
from clipself_d2.apps.emoji.first_look import STUDENT, render_picture
from clipself_d2.layers.letterbox import letterbox_image
from clipself_d2.model_zoo.checkpoints import pack_checkpoint
from clipself_d2.parts.checkpointer import SafeCheckpointer
from clipself_d2.parts.shipped_weights import FOLDER, PREFIX, TOWER_KEY

SUMS = {
    "emoji/clipself_proposals": "5ed3650e86271786872106b57c6da9980233c12abfcb530d8b3a8c5ebfaebe9b",
    "emoji/cris": "a2d7cada5c362ab1acbdee03c284f733e96b8a3ba2b23f6e09bf0eb78d95adf7",
    "emoji/fvit_clipself": "4f2b6aeaf29519e9ebc1035b62f73e7f4ac3644f75bf4929e8eb31407b06180d",
    "emoji/ov_panoptic_clipself": (
        "741be32424ec207d21b81166a0fe28a66c2b0fe69fed82e2bca633d8556a94f9"
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
        assert path.stat().st_size < 5 * 2**20
        assert content["recipe"] == f"{name}.yaml"
        assert {"cat", "broccoli"} < set(content["classes"]) or name == "emoji/cris"
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


def test_a_sentence_means_the_thing_that_it_names() -> None:
    model = model_zoo.get("emoji/cris.yaml", ["MODEL.DEVICE", "cpu"], trained=True).eval()
    picture = np.asarray(render_picture(SEED))
    canvas = letterbox_image(picture, 256, model.pixel_mean.flatten().tolist())
    image = torch.from_numpy(np.ascontiguousarray(canvas.transpose(2, 0, 1)))
    item = {"image": image, "height": picture.shape[0], "width": picture.shape[1]}
    with torch.no_grad():
        cat, broccoli = model([{**item, "sentence": f"the {word}"} for word in ("cat", "broccoli")])
    for found, left, right in ((cat, 60, 115), (broccoli, 105, 190)):
        columns = found["ref_mask"].nonzero()[:, 1]
        assert len(columns) > 1000
        assert left < int(columns.min()) < int(columns.max()) < right


def test_the_student_is_most_like_a_word_where_its_thing_is() -> None:
    tower = STUDENT.load()
    maps = similarity_maps(
        dense_map(tower, render_picture(SEED)), STUDENT.embed(WORDS).embeddings_KD
    )
    row, column = divmod(int(maps[0].argmax()), maps.shape[2])
    assert 100 < column * tower.patch_size < 190
    assert float(maps[2].max()) < float(maps[0].max())


def test_a_packed_checkpoint_is_the_whole_model_every_time(tmp_path: Path) -> None:
    recipe, student = "emoji/fvit_clipself.yaml", f"{PREFIX}emoji/clipself_proposals.pth"
    whole = SafeCheckpointer(nn.Identity())._torch_load(str(FOLDER / "emoji" / "fvit_clipself.pth"))
    run = {**whole, "optimizer": {}, "run": {"id": "a"}}
    del run[TOWER_KEY]
    torch.save(run, tmp_path / "run.pth")
    written = tmp_path / "fvit_clipself.pth"
    pack_checkpoint(tmp_path / "run.pth", written, config_path=recipe, tower=student)
    # What lies in the package was written by these lines, and nothing was lost.
    assert written.read_bytes() == (FOLDER / "emoji" / "fvit_clipself.pth").read_bytes()
    assert len(torch.load(written, weights_only=True)["model"]) < len(whole["model"])
    whole["model"]["backbone.bottom_up.tower.visual.proj"] += 1
    torch.save(whole, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="is not clipself_d2://emoji/clipself_proposals.pth"):
        pack_checkpoint(tmp_path / "other.pth", written, config_path=recipe, tower=student)


def test_an_address_of_nothing_is_refused_by_the_names_that_there_are() -> None:
    with pytest.raises(FileNotFoundError, match="come with the package; these do: .*fvit_clipself"):
        model_zoo.get("emoji/rpn.yaml", trained=True)
