"""Predictions on disk come back as they were, from one process and from several."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils import comm

from clipself_d2.evaluation import prediction_log
from clipself_d2.evaluation.prediction_log import PredictionLog


def records(start: int, number: int) -> list[dict[str, Any]]:
    scores = np.random.default_rng(start).random((number, 3)).tolist()
    return [
        {"image_id": start + n, "instances": [{"score": s} for s in row]}
        for n, row in enumerate(scores)
    ]


def fill(log: PredictionLog, start: int, number: int) -> None:
    for record in records(start, number):
        log.append(record)


def test_what_is_written_is_read_again_as_often_as_one_likes(tmp_path: Path) -> None:
    log = PredictionLog(tmp_path / "new")
    assert list(log) == []
    fill(log, 0, 4)
    assert list(log) == list(log) == records(0, 4)
    assert log.gather() is log


def test_logs_in_one_folder_do_not_meet(tmp_path: Path) -> None:
    first, second = PredictionLog(tmp_path), PredictionLog(tmp_path)
    fill(first, 0, 1)
    fill(second, 5, 1)
    assert list(first) == records(0, 1)
    folder = second.folder
    del second
    assert not folder.exists()
    assert list(first) == records(0, 1)


@pytest.mark.parametrize("visible", [True, False])
def test_the_first_process_reads_or_is_sent_the_files_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: bool
) -> None:
    logs = [PredictionLog(tmp_path) for _ in range(3)]
    # Uneven shards; the second process had no image.
    fill(logs[0], 0, 5)
    fill(logs[2], 5, 2)
    files = [(str(log._path), log._path.stat().st_size) for log in logs]
    sent: list[list[bytes]] = []

    def all_gather(data: Any) -> list[Any]:
        return [data] * 3 if isinstance(data, list) else files

    def gather(data: bytes, dst: int) -> list[bytes]:
        start = sum(len(parts[2]) for parts in sent)
        sent.append([data, b"", logs[2]._path.read_bytes()[start : start + 100]])
        return sent[-1]

    monkeypatch.setattr(prediction_log, "CHUNK", 100)
    monkeypatch.setattr(comm, "get_world_size", lambda: 3)
    monkeypatch.setattr(comm, "all_gather", all_gather)
    monkeypatch.setattr(comm, "gather", gather)
    if not visible:
        own = files[0][0]
        monkeypatch.setattr(prediction_log, "_is_visible", lambda path, size: path == own)
    joined = logs[0].gather()
    assert list(joined) == records(0, 5) + records(5, 2)
    assert list(logs[0]) == records(0, 5)
    assert len(sent) == (0 if visible else -(-files[2][1] // 100))


def test_a_stale_or_absent_file_is_not_visible(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert not prediction_log._is_visible(str(path), 0)
    path.write_bytes(b"12")
    assert prediction_log._is_visible(str(path), 2)
    assert not prediction_log._is_visible(str(path), 3)


@pytest.mark.parametrize("number", [0, 3])
def test_proposals_come_back(tmp_path: Path, number: int) -> None:
    proposals = Instances((7, 9))
    proposals.proposal_boxes = Boxes(torch.rand(number, 4))
    proposals.objectness_logits = torch.randn(number)
    log = PredictionLog(tmp_path)
    log.append({"image_id": 1, "proposals": proposals})
    (again,) = (record["proposals"] for record in log)
    assert again.image_size == (7, 9)
    assert torch.equal(again.proposal_boxes.tensor, proposals.proposal_boxes.tensor)
    assert torch.equal(again.objectness_logits, proposals.objectness_logits)
