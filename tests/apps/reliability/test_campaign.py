import json
from pathlib import Path

import pytest

from clipself_d2.apps.reliability import campaign
from clipself_d2.apps.reliability.bad_inputs import SENTENCE, SILENT, Verdict


def test_the_figures_are_said_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    verdicts = [
        Verdict("flag", "a", SENTENCE, "error: a", 2),
        Verdict("flag", "b", SILENT, "fine", 0),
    ]
    monkeypatch.setattr(campaign, "run_bad_inputs", lambda folder: verdicts)
    monkeypatch.setattr(campaign, "_find", lambda module, _: lambda folder: [("pickle", "refused")])
    args = campaign.parse_arguments(["--output", str(tmp_path), "--parts", "inputs", "attacks"])
    figures = campaign.run_campaign(args)
    text = campaign.describe(figures)
    assert "1 of 2 answered rightly" in text
    assert "attacks: 1: 1 refused" in text
    stored = json.loads((tmp_path / "campaign.json").read_text())
    assert stored["inputs"]["wrong"][0]["name"] == "b"


def test_a_part_that_is_not_there_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    assert campaign._find("none_such", "run") is None
    assert "left out" in caplog.text
