import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from clipself_d2.runs.checkpoints import (
    check_finite,
    flat_keys,
    newest_checkpoint,
    newest_of_run,
    warn_of_changes,
)
from clipself_d2.runs.folder import name_run


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Function that writes a checkpoint and tags it as the last."""

    def writes(iteration: int, name: str = "", run: str = "r", weight: float = 1.0) -> Path:
        path = tmp_path / (name or f"model_{iteration:07d}.pth")
        content = {"model": {"w": torch.full((50_000,), weight)}, "iteration": iteration}
        torch.save({**content, "run": {"id": run}}, path)
        (tmp_path / "last_checkpoint").write_text(path.name)
        return path

    return writes


def flip(path: Path) -> None:
    """Turn one bit in the middle, which torch reads without a word."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_the_newest_is_told_by_what_is_in_it(write, tmp_path) -> None:
    final = write(3, "model_final.pth")
    newer = write(5)
    older = write(1)
    os.utime(older, (2e9, 2e9))
    os.utime(final, (2e9, 2e9))
    found, passed = newest_checkpoint(tmp_path)
    assert found is not None
    assert found.path == newer
    assert passed == []


def test_the_result_of_a_training_counts_where_it_is_named_or_alone(write, tmp_path) -> None:
    numbered = write(1)
    final = write(3, "model_final.pth")
    assert newest_of_run(tmp_path).path == final
    (tmp_path / "last_checkpoint").write_text("")
    assert newest_of_run(tmp_path).path == numbered
    os.truncate(numbered, 10)
    assert newest_of_run(tmp_path).path == final


@pytest.mark.parametrize("size", [0, 100, 150_000])
def test_a_cut_checkpoint_is_passed_over_with_a_warning(write, tmp_path, size, caplog) -> None:
    whole = write(1)
    os.truncate(write(3), size)
    with caplog.at_level("WARNING"):
        assert newest_of_run(tmp_path).path == whole
    assert "model_0000003.pth (cut or damaged)" in caplog.text


def test_a_flipped_bit_is_found(write, tmp_path) -> None:
    whole = write(1)
    flip(write(3))
    found, passed = newest_checkpoint(tmp_path)
    assert found.path == whole
    assert passed == ["model_0000003.pth (damaged)"]


def test_weights_that_are_not_numbers_and_files_without_a_training_are_passed_over(
    write, tmp_path
) -> None:
    whole = write(1)
    write(3, weight=float("nan"))
    torch.save({"model": {}}, tmp_path / "model_weights.pth")
    found, passed = newest_checkpoint(tmp_path)
    assert found.path == whole
    assert passed == [
        "model_weights.pth (no state of a training)",
        "model_0000003.pth (weights that are not numbers)",
    ]


@pytest.mark.parametrize(
    ("tag", "said"), [("", "last_checkpoint (empty)"), ("model_9.pth", "model_9.pth (named by")]
)
def test_a_torn_tag_does_not_hide_a_whole_checkpoint(write, tmp_path, tag, said, caplog) -> None:
    whole = write(1)
    (tmp_path / "last_checkpoint").write_text(tag)
    with caplog.at_level("WARNING"):
        assert newest_of_run(tmp_path).path == whole
    assert said in caplog.text
    (tmp_path / "last_checkpoint").unlink()
    assert newest_of_run(tmp_path).path == whole


def test_a_tagged_file_of_another_name_counts(write, tmp_path) -> None:
    assert newest_of_run(tmp_path) is None
    assert newest_of_run(tmp_path / "gone") is None
    own = write(7, "own.pth")
    assert newest_of_run(tmp_path).path == own


def test_beginning_over_damaged_checkpoints_is_refused(write, tmp_path) -> None:
    os.truncate(write(3), 10)
    with pytest.raises(ValueError, match=r"no whole .*model_0000003.*leave out --resume"):
        newest_of_run(tmp_path)


def test_a_checkpoint_of_another_run_is_refused(write, tmp_path) -> None:
    write(3, run="theirs")
    name_run(tmp_path, "ours")
    with pytest.raises(ValueError, match=r"model_0000003\.pth is of run theirs.*run ours"):
        newest_of_run(tmp_path)
    name_run(tmp_path, "theirs")
    assert newest_of_run(tmp_path).run == "theirs"


def test_a_checkpoint_without_a_run_is_adopted(write, tmp_path) -> None:
    write(3, run="")
    assert newest_of_run(tmp_path).run == ""
    name_run(tmp_path, "ours")
    assert newest_of_run(tmp_path).run == "ours"


def test_changed_keys_are_listed(caplog) -> None:
    before = flat_keys({"SEED": 1, "MODEL": {"A": [1], "B": 2}, "OUTPUT_DIR": "a"})
    assert before == {"SEED": "1", "MODEL.A": "[1]", "MODEL.B": "2", "OUTPUT_DIR": "a"}
    after = flat_keys({"SEED": 2, "MODEL": {"A": [1], "B": 2}, "OUTPUT_DIR": "b", "NEW": 1})
    with caplog.at_level("WARNING"):
        warn_of_changes(before, after)
        assert caplog.messages == [
            "Since the checkpoint was written these keys have changed: SEED 1 -> 2"
        ]
        caplog.clear()
        warn_of_changes(before, before)
        warn_of_changes({}, after)
    assert caplog.text == ""
    assert "0x" not in flat_keys({"call": test_changed_keys_are_listed})["call"]


def test_weights_must_be_finite_and_constants_may_be_infinite() -> None:
    model = nn.Linear(2, 2)
    model.register_buffer("mask", torch.tensor([0.0, float("-inf")]))
    check_finite(model, "x")
    model.register_buffer("mean", torch.tensor([float("nan")]))
    with pytest.raises(ValueError, match=r"not finite \(1 tensors, mean\): not scored"):
        check_finite(model, "not scored")
    model.mean.zero_()
    nn.init.constant_(model.weight, float("inf"))
    with pytest.raises(ValueError, match="weight"):
        check_finite(model, "x")
