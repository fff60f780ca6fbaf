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
    monkeypatch.setattr(campaign, "run_attacks", lambda folder: [("pickle", "refused")])
    args = campaign.parse_arguments(["--output", str(tmp_path), "--parts", "inputs", "attacks"])
    figures = campaign.run_campaign(args)
    text = campaign.describe(figures)
    assert "1 of 2 answered rightly" in text
    assert "attacks: 1: 1 refused" in text
    stored = json.loads((tmp_path / "campaign.json").read_text())
    assert stored["inputs"]["wrong"][0]["name"] == "b"


@pytest.mark.parametrize(
    ("figures", "sound"),
    [
        ({"inputs": {SENTENCE: 3, SILENT: 0}}, True),
        ({"inputs": {SENTENCE: 3, SILENT: 1}}, False),
        ({"attacks": {"verdicts": {"refused with one sentence": 2}}}, True),
        ({"attacks": {"verdicts": {campaign.RAN: 1}}}, False),
        ({"kills": {"cris": {"failures": []}}}, True),
        ({"kills": {"cris": {"failures": ["no resume"]}}}, False),
    ],
)
def test_the_exit_code_tells_of_every_part(figures: dict, sound: bool) -> None:
    assert campaign.is_sound(figures) is sound
