"""One line for a run of several commands: which one is at work, and the time left of all."""

import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

# What Detectron2 prints of a training and of a test.
_STEP = re.compile(r"eta: (?P<eta>[\d:]+(?: days?, [\d:]+)?)  iter: (?P<step>\d+)")
_TEST = re.compile(r"Inference done (?P<done>\d+)/(?P<all>\d+)\.")


class ProgressLine:
    """The line, rewritten in a terminal, elsewhere written once a command.

    Only ratios of ``minutes`` count, which each command took in a run of the past; ``clock`` tells
    seconds.
    """

    def __init__(
        self,
        minutes: Mapping[str, float],
        *,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._minutes, self._stream, self._clock = dict(minutes), stream or sys.stdout, clock
        self._names, self._title, self._shown = list(minutes), "", 0
        self._start = clock()

    def begin(self, name: str) -> None:
        """Say that a command, one of ``minutes``, begins."""
        step, left = self._names.index(name), self.time_left(name)
        ahead = "" if left is None else f", about {max(1, round(left))} min left"
        self._title = f"step {step + 1} of {len(self._names)}: {name}{ahead}"
        self._write("")

    def see(self, line: str) -> None:
        """Read a line that the command printed."""
        if not self._stream.isatty():
            return
        if step := _STEP.search(line):
            self._write(f" (iteration {step['step']}, {step['eta']} left of this step)")
        elif test := _TEST.search(line):
            self._write(f" ({test['done']} of {test['all']} pictures tested)")

    def end(self) -> None:
        """Leave the line."""
        if self._stream.isatty():
            self._stream.write("\n")
            self._shown = 0

    def time_left(self, name: str) -> float | None:
        """Minutes from a command to the end, by the time of those before it; None at the first."""
        done = self._names.index(name)
        before = sum(self._minutes[past] for past in self._names[:done])
        after = sum(self._minutes[ahead] for ahead in self._names[done:])
        passed = (self._clock() - self._start) / 60
        return passed * after / before if before else None

    def _write(self, detail: str) -> None:
        text = f"{self._title}{detail}"
        if self._stream.isatty():
            text, self._shown = "\r" + text.ljust(self._shown), len(text)
        else:
            text += "\n"
        self._stream.write(text)
        self._stream.flush()
