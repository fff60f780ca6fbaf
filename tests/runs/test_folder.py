import errno
import os
import signal
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from clipself_d2.runs.folder import begin_run, claim_folder, name_run, read_run


def hold(folder: str, told: Connection) -> None:
    """Claim a folder and wait, as a child of this process does."""
    claim_folder(folder)
    if os.fork() == 0:
        told.send(os.getpid())
    time.sleep(60)


def test_a_folder_has_one_run_and_a_killed_one_leaves_no_claim(tmp_path: Path) -> None:
    context = get_context("fork")
    said, told = context.Pipe(duplex=False)
    holder = context.Process(target=hold, args=(str(tmp_path), told))
    holder.start()
    child = said.recv()
    try:
        with pytest.raises(ValueError, match=rf"in use by process {holder.pid} on "):
            claim_folder(str(tmp_path))
        holder.kill()
        holder.join()
        # Its child, as a worker of a loader would, lives on.
        os.kill(child, 0)
        claim_folder(str(tmp_path))
    finally:
        holder.kill()
        os.kill(child, signal.SIGKILL)


def test_a_claim_clears_what_a_killed_run_left_half_written(tmp_path: Path) -> None:
    (tmp_path / ".model_0000001.pth.123.part").write_text("half")
    (tmp_path / ".model_0000001.pth").write_text("somebody's")
    claim_folder(str(tmp_path))
    assert {p.name for p in tmp_path.iterdir()} == {".lock", ".model_0000001.pth"}


def test_a_folder_that_cannot_be_made_is_named_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"train\.output_dir .*file/out cannot be written to"):
        claim_folder(str(tmp_path / "file" / "out"), "train.output_dir")


def test_a_file_system_without_locks_is_warned_of(tmp_path: Path, monkeypatch, caplog) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.lockf", refuse)
    with caplog.at_level("WARNING"):
        claim_folder(str(tmp_path / "new"))
    assert "cannot be locked" in caplog.text


def test_a_new_run_in_a_used_folder_sets_its_checkpoints_aside(tmp_path: Path, caplog) -> None:
    first = begin_run(tmp_path)
    assert read_run(tmp_path) == first
    for name in ("model_0000001.pth", "model_final.pth", "last_checkpoint", "notes.txt"):
        (tmp_path / name).write_text(name)
    with caplog.at_level("WARNING"):
        second = begin_run(tmp_path)
    assert second != first
    assert read_run(tmp_path) == second
    aside = tmp_path / f"before_{second}"
    assert {p.name for p in aside.iterdir()} == {
        "model_0000001.pth",
        "model_final.pth",
        "last_checkpoint",
    }
    assert (tmp_path / "notes.txt").is_file()
    assert "moved" in caplog.text
    assert str(aside) in caplog.text


def test_an_empty_folder_gets_an_id_without_a_word(tmp_path: Path, caplog) -> None:
    with caplog.at_level("WARNING"):
        assert read_run(tmp_path) == ""
        assert name_run(tmp_path, "abc") == read_run(tmp_path) == "abc"
        begin_run(tmp_path / "new")
    assert caplog.text == ""
