import json
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import nn

from clipself_d2.apps.files.proposals import write_proposals


class FixedProposals(nn.Module):
    """Gives every image the same three boxes."""

    def forward(self, inputs: list[dict]) -> list[dict]:
        result = Instances((192, 256))
        result.proposal_boxes = Boxes(
            torch.tensor([[0.0, 0, 10, 10], [5, 5, 45, 25], [1, 1, 31, 41]])
        )
        result.objectness_logits = torch.tensor([-3.0, 2.0, 0.5])
        return [{"proposals": result} for _ in inputs]


class NoProposals(nn.Module):
    def forward(self, inputs: list[dict]) -> list[dict]:
        return [{} for _ in inputs]


def test_boxes_come_best_first_above_the_threshold(emoji_cfg, tmp_path: Path) -> None:
    cfg = emoji_cfg("rpn", "MODEL.WEIGHTS", "rpn.pth")
    output = tmp_path / "deep" / "proposals.json"
    count = write_proposals(
        cfg, FixedProposals(), "emoji_train_images", output, max_per_image=5, min_score=0.2
    )
    document = json.loads(output.read_text())
    assert count == len(document["annotations"]) == 2 * 16
    first, second = document["annotations"][:2]
    assert first["bbox"] == [5, 5, 40, 20]
    assert second["bbox"] == [1, 1, 30, 40]
    assert first["score"] == pytest.approx(0.8808, abs=1e-4)
    assert [row["id"] for row in document["annotations"]] == list(range(1, 33))
    assert document["info"]["weights"] == "rpn.pth"
    assert not list(output.parent.glob("*.partial"))


def test_the_best_are_kept(emoji_cfg, tmp_path: Path) -> None:
    count = write_proposals(
        emoji_cfg("rpn"), FixedProposals(), "emoji_train_images", tmp_path / "p.json",
        max_per_image=1, min_score=0.0,
    )  # fmt: skip
    assert count == 16


def test_a_model_without_proposals_names_the_key(emoji_cfg, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ProposalNetwork"):
        write_proposals(
            emoji_cfg("rpn"), NoProposals(), "emoji_train_images", tmp_path / "p.json",
            max_per_image=1, min_score=0.0,
        )  # fmt: skip
    assert not (tmp_path / "p.json").exists()
