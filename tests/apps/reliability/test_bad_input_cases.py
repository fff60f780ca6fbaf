from clipself_d2.apps.reliability.bad_input_cases import COMMANDS, cases


def test_there_are_many_and_none_twice() -> None:
    listed = list(cases())
    assert len(listed) >= 150
    assert len({(case.kind, case.command, case.name) for case in listed}) == len(listed)


def test_every_case_has_a_command() -> None:
    assert {case.command for case in cases()} == set(COMMANDS)
