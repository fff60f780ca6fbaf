from multiprocessing import get_context
from pathlib import Path

import pytest

from clipself_d2.apps.reliability import processes


@pytest.mark.parametrize(
    ("source", "code", "said"),
    [
        ("import os, sys; print(os.getcwd(), sys.argv[1])", 0, "{folder} word"),
        ("raise SystemExit('no')", 1, "no"),
        ("raise KeyboardInterrupt", 130, ""),
        ("1 / 0", 1, "ZeroDivisionError"),
    ],
)
def test_a_tool_is_a_process_whose_words_are_in_a_file(
    source: str, code: int, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "_nursery", lambda: get_context("fork"))
    tool, log = tmp_path / "tool.py", tmp_path / "log.txt"
    tool.write_text(source)
    process = processes.start_tool([str(tool), "word"], tmp_path, log)
    exit_code, output = processes.end_tool(process, log, 60)
    assert exit_code == code
    assert said.format(folder=tmp_path) in output
