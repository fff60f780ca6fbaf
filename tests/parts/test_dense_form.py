from pathlib import Path

import pytest
import torch

from clipself_d2.backbones import ClipViT
from clipself_d2.clip import load_tower
from clipself_d2.clip.weights.convert import convert_checkpoint
from clipself_d2.clip.weights.form import read_form
from clipself_d2.engine.distill_trainer import DistillTrainer
from clipself_d2.engine.trainer import Trainer
from clipself_d2.parts.dense_form import forms_of
from clipself_d2.runs.checkpointer import StrictCheckpointer

CHANGES = [("MODEL.CLIP.WINDOW_SIZE", 4), ("MODEL.PIXEL_MEAN", [60.0, 60.0, 50.0])]


@pytest.fixture
def weights(emoji_cfg, tmp_path) -> Path:
    """Checkpoint of a detector."""
    model = Trainer.build_model(emoji_cfg("fvit_untouched"))
    StrictCheckpointer(model, str(tmp_path)).save("detector")
    return tmp_path / "detector.pth"


def load_into(cfg, place: str, weights: Path) -> None:
    """Give a model the weights of a whole detector, or its tower those of the tower in it."""
    if place == "MODEL.CLIP.WEIGHTS":
        cfg.MODEL.CLIP.WEIGHTS = str(weights)
    model = Trainer.build_model(cfg)
    if place == "MODEL.WEIGHTS":
        StrictCheckpointer(model, cfg.OUTPUT_DIR).load(str(weights))


@pytest.mark.parametrize(("key", "value"), CHANGES)
@pytest.mark.parametrize("place", ["MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS"])
def test_another_form_is_said(emoji_cfg, weights, caplog, key, value, place) -> None:
    for changes in ((), (key, value)):
        caplog.clear()
        load_into(emoji_cfg("fvit_untouched", *changes), place, weights)
        said = [r.message for r in caplog.records if "another form" in r.message]
        assert len(said) == bool(changes)
        assert all(place in line and f"{key} was" in line for line in said)


@pytest.mark.parametrize("place", ["MODEL.WEIGHTS", "MODEL.CLIP.WEIGHTS"])
def test_another_dense_form_is_refused_unless_told_otherwise(
    emoji_cfg, weights, caplog, place
) -> None:
    changes = ("fvit_untouched", "MODEL.CLIP.DENSE_FORM", "declip_csa")
    with pytest.raises(ValueError, match=rf"{place} was trained in the dense form clipself, but"):
        load_into(emoji_cfg(*changes), place, weights)
    load_into(emoji_cfg(*changes, "MODEL.CLIP.ANY_FORM", True), place, weights)
    assert "DENSE_FORM was clipself, is declip_csa" in caplog.text


def test_a_lazy_tower_carries_its_form_and_is_held_to_it(tmp_path) -> None:
    tower = load_tower("ViT-Ti-8-emoji")
    backbone = ClipViT(tower=tower, dense_form="denserc")
    assert forms_of(backbone)["tower"]["MODEL.CLIP.DENSE_FORM"] == "denserc"
    StrictCheckpointer(tower, str(tmp_path)).save("student")
    file = str(tmp_path / "student.pth")
    again = load_tower("ViT-Ti-8-emoji", file)
    with pytest.raises(ValueError, match="file was trained in the dense form denserc, but"):
        ClipViT(tower=again)
    kept = ClipViT(tower=load_tower("ViT-Ti-8-emoji", file), dense_form="denserc").tower
    assert kept.gate is not None
    ClipViT(tower=again, any_form=True)
    assert again.gate is None


def test_a_gate_is_kept_in_a_file_and_begins_anew_where_a_file_has_none(tmp_path) -> None:
    tower = load_tower("ViT-Ti-8-emoji", "emoji")
    tower.set_dense_form("denserc")
    torch.nn.init.normal_(tower.gate.weight)
    torch.save(tower.state_dict(), tmp_path / "gated.pth")
    again = load_tower("ViT-Ti-8-emoji", str(tmp_path / "gated.pth"))
    again.set_dense_form("denserc")
    assert torch.equal(again.gate.weight, tower.gate.weight)
    tower.set_dense_form("clipself")
    tower.set_dense_form("denserc")
    assert not tower.gate.weight.any()


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
    assert form["MODEL.PIXEL_MEAN"] == list(cfg.MODEL.PIXEL_MEAN)
    assert form["MODEL.CLIP.DENSE_FORM"] == "clipself"
    convert_checkpoint(file, tmp_path / "d2.pth", to="d2")
    assert read_form(tmp_path / "d2.pth") == form


def test_a_file_without_a_form_takes_the_configs_with_a_line(emoji_cfg, weights, caplog) -> None:
    content = torch.load(weights, weights_only=True)
    torch.save({"model": content["model"]}, weights)
    assert read_form(weights) is None
    with caplog.at_level("INFO"):
        Trainer.build_model(emoji_cfg("fvit_untouched", "MODEL.CLIP.WEIGHTS", str(weights)))
    assert "does not say in which dense form" in caplog.text
