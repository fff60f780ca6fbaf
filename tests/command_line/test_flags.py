import argparse

import pytest

from clipself_d2.command_line.flags import count, device, positive, real, share, whole


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (positive, "0"),
        (positive, "-2"),
        (positive, "1.5"),
        (positive, "two"),
        (count, "-1"),
        (share, "nan"),
        (share, "inf"),
        (share, "1.01"),
        (share, "x"),
        (real(0.5, 2), "0.4"),
        (whole(1, 65535), "65536"),
        (device, "banana"),
    ],
)
def test_values_out_of_range_are_argparses_errors(kind, text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text.replace(".", r"\.")):
        kind(text)


def test_values_in_range_are_numbers() -> None:
    assert (positive("3"), count("0"), share("1"), real(0.5, 2)("0.5")) == (3, 0, 1.0, 0.5)
    assert device("cpu") == "cpu"
    assert device("") == ""
