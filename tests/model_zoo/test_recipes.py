"""Recipes by name, whatever folder the user is in."""

from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig

from clipself_d2 import model_zoo

DETECTOR = "emoji/fvit_untouched.yaml"
FROZEN = ("MODEL.CLIP.PRETRAINED", "", "MODEL.DEVICE", "cpu")


def test_a_recipe_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert Path(model_zoo.get_config_file(DETECTOR)).is_file()
    cfg = model_zoo.get_config(DETECTOR, ["SOLVER.MAX_ITER", "7"])
    assert cfg.SOLVER.MAX_ITER == 7
    assert cfg.MODEL.CLIP.NAME == "ViT-Ti-8-emoji"


def test_a_python_recipe_is_a_lazy_config() -> None:
    cfg = model_zoo.get_config("plug_in/retinanet_lazy.py", ["train.max_iter=7"])
    assert isinstance(cfg, DictConfig)
    assert cfg.train.max_iter == 7


def test_an_unknown_recipe_is_refused_with_the_way_to_the_list() -> None:
    with pytest.raises(FileNotFoundError, match="emoji/nothing.yaml is no recipe"):
        model_zoo.get("emoji/nothing.yaml")
    assert DETECTOR in model_zoo.list_recipes()


def test_a_model_carries_the_weights_that_are_asked_for(tmp_path: Path) -> None:
    model = model_zoo.get(DETECTOR, FROZEN)
    assert not model.training
    with torch.no_grad():
        model.proposal_generator.rpn_head.conv.weight.fill_(0.25)
    torch.save({"model": model.state_dict()}, tmp_path / "model.pth")
    again = model_zoo.get(DETECTOR, [*FROZEN, "MODEL.WEIGHTS", str(tmp_path / "model.pth")])
    assert bool((again.proposal_generator.rpn_head.conv.weight == 0.25).all())
