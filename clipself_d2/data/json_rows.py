"""Row by row through a large json file, so that half a gigabyte of text stays half a gigabyte."""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

_SPACE = re.compile(r"[ \t\r\n]*")


class JsonPart(NamedTuple):
    """A value of a json object, or a row of a list in it, and where its text is."""

    key: str
    start: int
    end: int
    value: Any


def scan_rows(text: str) -> Iterator[JsonPart]:
    """Walk through a json object of lists without holding its rows.

    Yields the rows of its lists, one by one, and its other values, in the order of the text; a
    JSONDecodeError says where the text is no such object.
    """
    decoder = json.JSONDecoder()
    at = _pass(text, 0, "{")
    # Slices, since behind the end of a broken text there is no letter.
    while text[at : at + 1] != "}":
        key, at = decoder.raw_decode(text, at)
        at = _pass(text, _skip(text, at), ":")
        if text[at : at + 1] == "[":
            at = _skip(text, at + 1)
            while text[at : at + 1] != "]":
                value, end = decoder.raw_decode(text, at)
                yield JsonPart(key, at, end, value)
                at = _next(text, end, "]")
            at += 1
        else:
            value, end = decoder.raw_decode(text, at)
            yield JsonPart(key, at, end, value)
            at = end
        at = _next(text, at, "}")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _pass(text: str, at: int, mark: str) -> int:
    """Where the text goes on behind a mark."""
    at = _skip(text, at)
    if text[at : at + 1] != mark:
        raise json.JSONDecodeError(f"Expecting {mark!r}", text, at)
    return _skip(text, at + 1)


def _next(text: str, at: int, close: str) -> int:
    """Where the next entry begins, or the bracket that closes the list."""
    at = _skip(text, at)
    return at if text[at : at + 1] == close else _pass(text, at, ",")
