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
    cfg = get_cfg()
    for lines in table.values():
        for case in lines.replace("\n", ";").split(";"):
            if key := case.strip().split(" ", 1)[0]:
                functools.reduce(getattr, key.split("."), cfg)
