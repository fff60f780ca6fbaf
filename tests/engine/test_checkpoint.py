import pytest
import torch
from torch import nn

from clipself_d2.engine.checkpoint import StrictCheckpointer, changed, self_contained


def test_a_checkpoint_of_another_shape_is_refused(tmp_path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": nn.Linear(3, 2).state_dict()}, file)
    with pytest.raises(ValueError, match=r"weight has shape \(2, 3\), the model's \(2, 4\)"):
        StrictCheckpointer(nn.Linear(4, 2)).load(str(file))


def test_a_checkpoint_without_any_parameter_of_the_model_is_refused(tmp_path) -> None:
    file = tmp_path / "other.pth"
    torch.save({"model": {"visual.proj": torch.zeros(2)}}, file)
    with pytest.raises(ValueError, match=r"MODEL\.CLIP\.WEIGHTS"):
        StrictCheckpointer(nn.Linear(4, 2)).load(str(file))


def test_a_fitting_checkpoint_is_loaded(tmp_path) -> None:
    source, target = nn.Linear(4, 2), nn.Linear(4, 2)
    torch.save({"model": source.state_dict()}, tmp_path / "same.pth")
    StrictCheckpointer(target).load(str(tmp_path / "same.pth"))
    assert torch.equal(source.weight, target.weight)


def test_a_changed_config_is_a_copy(emoji_cfg) -> None:
    cfg = emoji_cfg("rpn")
    assert changed(cfg, "DATASETS.TEST", ("a", "b")).DATASETS.TEST == ("a", "b")
    assert cfg.DATASETS.TEST == ()


def test_a_checkpoint_brings_the_tower(emoji_cfg, tmp_path) -> None:
    cfg = emoji_cfg("rpn", "MODEL.CLIP.WEIGHTS", "tower.pth", "OUTPUT_DIR", str(tmp_path))
    assert self_contained(cfg, resume=True).MODEL.CLIP.WEIGHTS == "tower.pth"
    (tmp_path / "last_checkpoint").write_text("model_final.pth")
    assert self_contained(cfg).MODEL.CLIP.WEIGHTS == "tower.pth"
    assert self_contained(cfg, resume=True).MODEL.CLIP.WEIGHTS == ""
    cfg.MODEL.WEIGHTS = "model.pth"
    assert self_contained(cfg).MODEL.CLIP.WEIGHTS == ""
