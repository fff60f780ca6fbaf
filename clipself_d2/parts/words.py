"""Words for messages: the word that was meant, and lists that are cut."""

import difflib
from collections.abc import Iterable

SHOWN = 5


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Find what a user may have meant.

    Args:
        word: What was typed.
        known: What there is.

    Returns:
        The end of a sentence that names the nearest word, empty where none is near.
    """
    by_case = {name.lower(): name for name in known}
    near = difflib.get_close_matches(word.lower(), by_case, n=1)
    return f"; did you mean {by_case[near[0]]!r}?" if near else ""


def shortened(words: Iterable[object], shown: int = SHOWN) -> str:
    """List words, but not all of a long list.

    Args:
        words: Any.
        shown: Most that are written out.

    Returns:
        Them between commas, with the number of those left out.
    """
    texts = [str(word) for word in words]
    more = len(texts) - shown
    return ", ".join(texts[:shown]) + (f" and {more} more" if more > 0 else "")
