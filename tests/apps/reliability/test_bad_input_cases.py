import functools

import pytest
from detectron2.config import get_cfg

from clipself_d2.apps.reliability.bad_input_cases import _NUMBERS, _WORDS, COMMANDS, cases


def test_there_are_many_and_none_twice() -> None:
    listed = list(cases())
    assert len(listed) >= 150
    assert len({(case.kind, case.command, case.name) for case in listed}) == len(listed)


def test_every_case_has_a_command() -> None:
    assert {case.command for case in cases()} == set(COMMANDS)


@pytest.mark.parametrize("table", [_NUMBERS, _WORDS])
def test_every_key_whose_value_is_bad_is_there(table) -> None:
    words = ";".join(table.values()).replace("\n", ";").split(";")
    keys = {word.split()[0] for word in words if word.strip()}
    assert len(keys) > 15
    for key in keys:
        *parts, last = key.split(".")
        assert last in functools.reduce(getattr, parts, get_cfg()), key
