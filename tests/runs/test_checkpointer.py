import pytest
import torch
from torch import nn

from clipself_d2.runs.checkpointer import StrictCheckpointer, changed, self_contained
from clipself_d2.runs.folder import read_run


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


class Half(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rpn, self.head, self.norm = nn.Linear(2, 2), nn.Linear(2, 2), nn.BatchNorm1d(2)


def without(state: dict, part: str) -> dict:
    return {key: value for key, value in state.items() if part not in key}


def test_half_a_model_is_scored_by_nobody_but_begins_a_training(tmp_path) -> None:
    file = str(tmp_path / "rpn.pth")
    torch.save({"model": without(Half().state_dict(), "head")}, file)
    with pytest.raises(ValueError, match=r"rpn\.pth is half a model: it lacks 2 .*head\.weight"):
        StrictCheckpointer(Half()).resume_or_load(file, resume=False)
    training = StrictCheckpointer(Half(), str(tmp_path / "out"), trainer=nn.Linear(1, 1))
    training.resume_or_load(file, resume=False)


def test_a_model_may_lack_what_it_has_not_learned(tmp_path) -> None:
    file, source, target = str(tmp_path / "old.pth"), Half(), Half()
    torch.save({"model": without(source.state_dict(), "num_batches_tracked")}, file)
    StrictCheckpointer(target).load(file)
    assert torch.equal(source.head.weight, target.head.weight)


def test_weights_that_are_not_finite_are_neither_saved_nor_loaded(tmp_path) -> None:
    model = nn.Linear(4, 2)
    checkpointer = StrictCheckpointer(model, str(tmp_path), trainer=nn.Linear(1, 1))
    checkpointer.save("model_0000001", iteration=1)
    nn.init.constant_(model.weight, float("nan"))
    with pytest.raises(ValueError, match="model_0000003 is not saved: the training has diverged"):
        checkpointer.save("model_0000003", iteration=3)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    assert not (tmp_path / "model_0000003.pth").exists()
    torch.save({"model": model.state_dict()}, tmp_path / "nan.pth")
    with pytest.raises(ValueError, match=r"nan\.pth is of a training that has diverged"):
        StrictCheckpointer(nn.Linear(4, 2)).load(str(tmp_path / "nan.pth"))


def test_weights_that_are_not_there_are_named(tmp_path) -> None:
    with pytest.raises(FileNotFoundError, match=r"gone\.pth are not there"):
        StrictCheckpointer(nn.Linear(4, 2)).load(str(tmp_path / "gone.pth"))


def test_a_checkpoint_appears_when_it_is_whole(tmp_path, monkeypatch) -> None:
    checkpointer = StrictCheckpointer(nn.Linear(4, 2), str(tmp_path))
    checkpointer.save("model_0000001", iteration=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def killed(content: object, file) -> None:
        file.write(b"half")
        file.flush()
        assert (tmp_path / "model_0000001.pth").read_bytes() == before["model_0000001.pth"]
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpointer.save("model_0000001", iteration=1)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_the_run_and_its_config_are_in_the_checkpoint(tmp_path, caplog) -> None:
    def build(seed: int) -> StrictCheckpointer:
        states = {"config": {"SEED": seed}, "trainer": nn.Linear(1, 1)}
        return StrictCheckpointer(nn.Linear(4, 2), str(tmp_path), **states)

    first = build(1)
    first.resume_or_load("", resume=True)
    first.save("model_0000001", iteration=1)
    run = torch.load(tmp_path / "model_0000001.pth", weights_only=True)["run"]
    assert run == {"id": read_run(tmp_path), "config": {"SEED": "1"}}
    with caplog.at_level("WARNING"):
        build(2).resume_or_load("", resume=True)
    assert "SEED 1 -> 2" in caplog.text
    assert read_run(tmp_path) == run["id"]
    build(2).resume_or_load("", resume=False)
    assert read_run(tmp_path) != run["id"]
    assert not list(tmp_path.glob("*.pth"))
    assert [path.name for path in tmp_path.glob("before_*/*.pth")] == ["model_0000001.pth"]


def test_a_scoring_leaves_the_folder_as_it_is(tmp_path) -> None:
    training = StrictCheckpointer(nn.Linear(4, 2), str(tmp_path), trainer=nn.Linear(1, 1))
    training.save("model_0000001", iteration=1)
    (tmp_path / "last_checkpoint").unlink()
    before = {path.name for path in tmp_path.iterdir()}
    model = nn.Linear(4, 2)
    StrictCheckpointer(model, str(tmp_path)).resume_or_load("", resume=True)
    assert torch.equal(model.weight, training.model.weight)
    StrictCheckpointer(model, str(tmp_path)).resume_or_load("", resume=False)
    assert {path.name for path in tmp_path.iterdir()} == before
