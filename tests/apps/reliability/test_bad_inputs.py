from pathlib import Path

import pytest

from clipself_d2.apps.reliability.bad_inputs import (
    SENTENCE,
    SILENT,
    TAKEN,
    TRACEBACK,
    BadInput,
    count_verdicts,
    judge,
    run_bad_inputs,
)

REFUSED = BadInput("flag", "x", "train", "", word="KEY")
GOES_ON = BadInput("flag", "x", "train", "", taken="it is right", word="ignored")


@pytest.mark.parametrize(
    ("case", "code", "output", "verdict"),
    [
        (REFUSED, 1, "log\nerror: KEY is 3\n", SENTENCE),
        (REFUSED, 1, "error: something\n", TRACEBACK),
        (REFUSED, 1, "Traceback (most recent call last):\nerror: KEY\n", TRACEBACK),
        (REFUSED, 1, "", TRACEBACK),
        (REFUSED, 0, "KEY\n", SILENT),
        (GOES_ON, 0, "it is ignored\nfine\n", TAKEN),
        (GOES_ON, 0, "fine\n", SILENT),
        (GOES_ON, 1, "error: ignored\n", TRACEBACK),
    ],
)
def test_an_answer_is_judged(case: BadInput, code: int, output: str, verdict: str) -> None:
    assert judge(case, code, output).verdict == verdict


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["config value", "config word", "flag", "lazy override"])
def test_every_bad_input_of_a_kind_is_answered_rightly(kind: str, tmp_path: Path) -> None:
    verdicts = run_bad_inputs(tmp_path, only=kind)
    assert verdicts
    wrong = [verdict for verdict in verdicts if verdict.verdict in (TRACEBACK, SILENT)]
    assert not wrong
    assert count_verdicts(verdicts)["all"] == len(verdicts)
