import json

import pytest

from clipself_d2.data.json_rows import scan_rows

DOCUMENT = {
    "info": {"a": [1, 2], "b": "x]"},
    "rows": [{"id": 1, "t": 'a "quoted", [text]'}, {"id": 2, "n": [[1.5, 2e-3]]}],
    "empty": [],
    "number": 3,
}


@pytest.mark.parametrize("indent", [None, 1])
def test_the_parts_are_those_of_the_whole(indent: int | None) -> None:
    text = json.dumps(DOCUMENT, indent=indent)
    parts = list(scan_rows(text))
    assert [part.value for part in parts if part.key == "rows"] == DOCUMENT["rows"]
    assert [part.key for part in parts] == ["info", "rows", "rows", "number"]
    assert all(json.loads(text[part.start : part.end]) == part.value for part in parts)


def test_an_empty_object_has_no_part() -> None:
    assert list(scan_rows(" { } ")) == []


@pytest.mark.parametrize(
    "text", ["", "[]", "hello", '{"a": [1, 2', '{"a": [1 2]}', '{"a" 1}', '{"a": 1', '{"a": [{]}']
)
def test_a_broken_text_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="Expecting"):
        list(scan_rows(text))
