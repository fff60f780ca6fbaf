import io

import pytest

from clipself_d2.apps.emoji.progress import ProgressLine

MINUTES = {"data": 1.0, "train": 6.0, "test": 2.0}
TRAINS = "[11/28 05:18:54 d2.utils.events]:  eta: 0:01:02  iter: 19  total_loss: 1.2"
TESTS = "Inference done 11/300. Dataloading: 0.0001 s/iter."


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("stream", [io.StringIO(), Terminal()])
def test_the_line_counts_the_commands_and_tells_the_time_left(stream: io.StringIO) -> None:
    now = [0.0]
    progress = ProgressLine(MINUTES, stream=stream, clock=lambda: now[0])
    progress.begin("data")
    progress.see(TRAINS)
    progress.end()
    # This machine takes twice the time of the run that the minutes are of.
    now[0] = 120.0
    progress.begin("train")
    assert "step 1 of 3: data\n" in stream.getvalue() or stream.isatty()
    assert "step 2 of 3: train, about 16 min left" in stream.getvalue()
    assert ("\r" in stream.getvalue()) == stream.isatty()


def test_a_terminal_is_told_of_steps_and_tests_on_the_same_line() -> None:
    stream = Terminal()
    progress = ProgressLine(MINUTES, stream=stream)
    progress.begin("data")
    for line in (TRAINS, TESTS, "something else"):
        progress.see(line)
    shown = stream.getvalue().split("\r")
    assert shown[1].startswith("step 1 of 3: data")
    assert "(iteration 19, 0:01:02 left of this step)" in shown[2]
    assert "(11 of 300 pictures tested)" in shown[3]
    # What is shorter blots out what was longer.
    assert len(shown) == 4
    assert len(shown[3]) == len(shown[2])
    assert "\n" not in stream.getvalue()
