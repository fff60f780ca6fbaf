from pathlib import Path

import pytest
import torch

from clipself_d2.clip.weights.convert import convert_checkpoint
from clipself_d2.clip.weights.form import read_form
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts.dense_form import FORM_KEYS
from clipself_d2.runs.checkpointer import StrictCheckpointer

CHANGES = [
    ("MODEL.CLIP.DENSE_FORM", "attention"),
    ("MODEL.CLIP.WINDOW_SIZE", 4),
    ("MODEL.PIXEL_MEAN", [60.0, 60.0, 50.0]),
]


@pytest.fixture
def weights(emoji_cfg, tmp_path) -> Path:
    """Checkpoint of a detector."""
    model = Trainer.build_model(emoji_cfg("fvit_untouched"))
    StrictCheckpointer(model, str(tmp_path)).save("detector")
    return tmp_path / "detector.pth"


@pytest.mark.parametrize(("key", "value"), CHANGES)
@pytest.mark.parametrize("place", ["MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS"])
def test_another_form_is_said(emoji_cfg, weights, caplog, key, value, place) -> None:
    for changes in ((), (key, value)):
        caplog.clear()
        cfg = emoji_cfg("fvit_untouched", *changes)
        if place == "MODEL.CLIP.WEIGHTS":
            cfg.MODEL.CLIP.WEIGHTS = str(weights)
        model = Trainer.build_model(cfg)
        if place == "MODEL.WEIGHTS":
            StrictCheckpointer(model, cfg.OUTPUT_DIR).load(str(weights))
        said = [r.message for r in caplog.records if "another form" in r.message]
        assert len(said) == bool(changes)
        assert all(place in line and f"{key} was" in line for line in said)


def test_weights_of_another_clip_are_refused(emoji_cfg, weights) -> None:
    content = torch.load(weights, weights_only=True)
    for form in content["dense_form"].values():
        form["MODEL.CLIP.NAME"] = "ViT-Ti-8-quickgelu"
    torch.save(content, weights)
    with pytest.raises(ValueError, match=r"WEIGHTS is of ViT-Ti-8-quickgelu, but MODEL\.CLIP"):
        Trainer.build_model(emoji_cfg("fvit_untouched", "MODEL.CLIP.WEIGHTS", str(weights)))


def test_a_distilled_student_and_its_conversion_tell_their_form(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("clipself_patches", "SOLVER.MAX_ITER", 1)
    trainer = DistillTrainer(cfg)
    trainer.checkpointer.save("student")
    file = Path(cfg.OUTPUT_DIR) / "student.pth"
    form = read_form(file)
    assert tuple(form) == FORM_KEYS
    assert form["MODEL.CLIP.DENSE_FORM"] == "clipself"
    convert_checkpoint(file, tmp_path / "d2.pth", to="d2")
    assert read_form(tmp_path / "d2.pth") == form


def test_a_file_without_a_form_takes_the_configs_with_a_line(emoji_cfg, weights, caplog) -> None:
    content = torch.load(weights, weights_only=True)
    torch.save({"model": content["model"]}, weights)
    assert read_form(weights) is None
    with caplog.at_level("INFO"):
        Trainer.build_model(emoji_cfg("fvit_untouched", "MODEL.CLIP.WEIGHTS", str(weights)))
    assert "does not say in which form" in caplog.text
