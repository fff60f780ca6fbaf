import pytest

from clipself_d2.parts.arithmetic import MAX_LENGTH, evaluate


@pytest.mark.parametrize(
    "text",
    [
        "int(256 * 0.75)",
        "[[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]]",
        "(90000 * 2 // 3, 120000)", "-1.5e-3 + +2", "round(7 / 3, 2) % 2",
        "[min(3, 4), max(1, 2, 3), float(5)]", "[]", "[(x, -x) for x in (1, 2)]", "True",
    ],
)  # fmt: skip
def test_arithmetic_is_that_of_python(text):
    expected = eval(text)
    assert evaluate(text) == expected
    assert type(evaluate(text)) is type(expected)


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')", "().__class__", "x", "'text'", "b'ab'", "[1][0]", "{1: 2}",
        "lambda: 1", "[x for x in [1] if x]", "[x for x in [1] for y in [2]]",
        "[[0 for int in [print]][0]]", "(x := 3)", "int('7')", "int(x=3)", "int", "eval(1)",
        "1 if 2 else 3", "1 < 2", "1j", "...", "None", "*[1]", "[1] * 3", "1 +", "", "1; 2",
        "a" * (MAX_LENGTH + 1), "(" * 500, "-" * 900 + "1", "9**9**9", "9**9**9**9",
        "10.0**300 * 10.0**300", "2**-99999", "1/0", "(-8)**0.5", "1e999",
        "[[[x for x in [{0}]] for y in [{0}]] for z in [{0}]]".format(",".join("9" * 100)),
    ],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r".+"):
        evaluate(text)
