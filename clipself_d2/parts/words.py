"""Words for messages: the word that was meant, and lists that are cut."""

import difflib
from collections.abc import Iterable

SHOWN = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """End a sentence with the nearest of the known words, or with nothing where none is near."""
    by_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_case, n=1)
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""


def shortened(words: Iterable[object], shown: int = SHOWN) -> str:
    """List words between commas, but not all of a long list."""
    texts = [str(word) for word in words]
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")
