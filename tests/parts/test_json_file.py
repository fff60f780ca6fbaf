import json
import math
from pathlib import Path

import pytest

from clipself_d2.parts.json_file import write_json


def test_undefined_numbers_are_null(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    write_json(path, {"ap": math.nan, "rows": [(1.5, math.inf)], "name": "x"})

    def refuse(word: str) -> None:
        raise AssertionError(word)

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content == {"ap": None, "rows": [[1.5, None]], "name": "x"}
    assert [file.name for file in path.parent.iterdir()] == ["a.json"]


def test_what_cannot_be_written_leaves_the_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)
    with pytest.raises(TypeError):
        write_json(path, object())
    assert path.read_text() == "1"
