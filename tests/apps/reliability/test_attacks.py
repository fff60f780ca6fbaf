from pathlib import Path

import pytest

from clipself_d2.apps.reliability import attacks
from clipself_d2.apps.reliability.attacks import DATA, RAN, REFUSED, TRACEBACK, run_attacks

# Text that may well be a name, and archives of which nothing is unpacked.
READ_AS_DATA = {
    "KEY VALUE: code",
    "cache of text embeddings",
    "members outside of a shard",
    "vocabulary a.txt: code",
    "concept pool: code",
}


def test_no_attack_on_the_library_runs_code_and_each_is_refused_in_one_sentence(tmp_path):
    found = dict(run_attacks(tmp_path, commands=False))
    assert len(found) >= 46
    expected = {name: DATA if name in READ_AS_DATA else REFUSED for name in found}
    assert found == expected


@pytest.mark.slow
def test_no_attack_on_a_command_line_runs_code(tmp_path):
    found = attacks._attack_commands(tmp_path / "commands")
    assert {verdict for _, verdict in found} == {REFUSED}


def test_verdict_tells_code_that_ran(tmp_path):
    marker = tmp_path / "ran"

    def fail(error: type[Exception], text: str) -> None:
        raise error(text)

    verdict = attacks._verdict
    assert verdict(lambda: fail(ValueError, "no"), marker) == REFUSED
    assert verdict(lambda: fail(ValueError, "set weights_only to False"), marker) == TRACEBACK
    assert verdict(lambda: fail(ZeroDivisionError, ""), marker) == TRACEBACK
    assert verdict(lambda: 3, marker) == DATA
    assert verdict(lambda: Path.mkdir(marker), marker) == RAN
